"""`caption.tagger` with a model of the WD family, from tars to the table, against timm one picture at a time.

    python bench/bench_tagger.py [--architecture eva02_large_patch14_448] [--pictures 20000] [--batch 128] [--plain 30]

The corpus of bench_embed, random weights, and a threshold above which about thirty tags are given. The plain loop does
what the published tools do: Pillow pads and scales, timm normalises, the model sees one picture.
"""

import csv
import json
import tempfile
from pathlib import Path

import timm
import torch
from bench_embed import arguments, compare, corpus, one_by_one, place, tables, timed
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from caption import tagger
from shared.device import devices
from shared.vision import Decode

TAGS = 10_861
GIVEN = 30


def checkpoint(folder: Path, architecture: str) -> float:
    """A model with random weights in the family's layout; returns the threshold."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=TAGS).eval()
    config = {
        "architecture": architecture,
        "num_classes": TAGS,
        "pretrained_cfg": model.pretrained_cfg | {"num_classes": TAGS},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    with (folder / "selected_tags.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tag_id", "name", "category", "count"])
        writer.writerows((number, f"tag_{number}", 9 if number < 4 else 0, 100) for number in range(TAGS))
    with torch.inference_mode():
        found = model(torch.randn(1, *model.pretrained_cfg["input_size"])).sigmoid()
    return float(found.quantile(1 - GIVEN / TAGS))


def plain(source: Path, done: dict[str, Path], model: str, count: int) -> float:
    """Pictures per second, one after the other."""
    module = timm.create_model(f"local-dir:{model}", pretrained=True).to(devices()[0]).eval()
    prepare = create_transform(**resolve_model_data_config(module), is_training=False)

    def tag(image: Image.Image) -> None:
        side = max(image.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        module(prepare(square)[None].flip(1).to(devices()[0])).sigmoid().cpu()

    return one_by_one(source, done, count, tag)


def main() -> None:
    """All of them, on one corpus."""
    parser = arguments(__doc__, 30)
    parser.add_argument("--architecture", default="eva02_large_patch14_448")
    args = parser.parse_args()
    print(f"{place()}, timm {timm.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        source, model = Path(temporary) / "source", Path(temporary) / "model"
        source.mkdir()
        model.mkdir()
        corpus(source, args.pictures)
        done = tables(source, Path(temporary))
        threshold = checkpoint(model, args.architecture)
        rows = max(args.batch, min(4096, args.pictures // 4))
        settings = {"model": str(model), "thresholds": {"general": threshold}, "batch": args.batch, "shard_rows": rows}
        loop = plain(source, done, str(model), args.plain)
        loaded, _ = tagger.load_tagger(tagger.STAGE.settings(**settings))

        def ours(decode: Decode) -> float:
            return timed("tagger", tagger.STAGE, source, done, decode=decode, **settings)[1]

        compare(args.architecture, loaded, loop, source, done, args, ours)


if __name__ == "__main__":
    main()
