"""`caption.tagger` with a model of the WD family, from tars to the table, against timm one picture at a time.

    python bench/bench_tagger.py
    python bench/bench_tagger.py --parts reduced --pictures 20000
    python bench/bench_tagger.py --small                  # a tiny model and few pictures: does it run at all?

The corpus of bench_embed, random weights, and a threshold above which about thirty tags are given. Every result is
printed at once, ours as `decode: reduced`, the default, first:

    reduced, full, gpu   ours, decoding so: pictures per second behind the first shard, for which the model is compiled
    processes            reading and decoding alone, as `reduced`
    model                the model alone, compiled, on pixels that are on the device
    plain                as the published tools do: Pillow pads and scales, timm normalises, the model sees one picture
"""

import argparse
import csv
import json
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from bench_embed import alone, corpus, decoding, one_by_one, place, tables, timed
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from caption import tagger
from shared.device import devices
from shared.vision.table import Model

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


def measures(
    source: Path, done: dict[str, Path], settings: dict[str, Any], args: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    """Pictures per second by the name of what is measured."""

    @cache
    def loaded() -> Model:
        return tagger.load_tagger(tagger.STAGE.settings(**settings))[0]

    def ours(decode: str) -> float:
        return timed("tagger", tagger.STAGE, source, done, decode=decode, **settings)[1]

    return {
        **{decode: partial(ours, decode) for decode in ("reduced", "full", "gpu")},
        "processes": lambda: decoding(source, done, loaded().geometry, args, "reduced"),
        "model": lambda: alone(loaded(), args),
        "plain": lambda: plain(source, done, settings["model"], args.plain),
    }


def arguments() -> argparse.Namespace:
    """What is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--parts", nargs="+", default=["reduced", "processes", "model", "plain", *["gpu"] * gpu])
    parser.add_argument("--architecture", default="eva02_large_patch14_448")
    parser.add_argument("--pictures", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--plain", type=int, default=30, help="pictures of the plain loop")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.small:
        args.architecture, args.pictures, args.batch, args.plain = "vit_tiny_patch16_224", 32, 8, 3
    return args


def main() -> None:
    """Each of them, on one corpus."""
    args = arguments()
    print(f"{args.architecture}, {place()}, timm {timm.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        source, model = Path(temporary) / "source", Path(temporary) / "model"
        source.mkdir()
        model.mkdir()
        corpus(source, args.pictures)
        done = tables(source, Path(temporary))
        settings = {
            "model": str(model),
            "thresholds": {"general": checkpoint(model, args.architecture)},
            "batch": args.batch,
            "shard_rows": max(args.batch, min(1024, args.pictures // 4)),
        }
        found = measures(source, done, settings, args)
        for part in args.parts:
            print(f"{part}: {found[part]():,.1f} pictures/s", flush=True)


if __name__ == "__main__":
    main()
