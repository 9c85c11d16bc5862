"""`caption.tagger` with a model of the WD family, from tars to the table, against timm one picture at a time.

    python bench/bench_tagger.py [--architecture eva02_large_patch14_448] [--pictures 20000] [--batch 128] [--plain 30]

The corpus of bench_embed, random weights, and a threshold above which about thirty tags are given. The plain loop does
what the published tools do: Pillow pads and scales, timm normalises, the model sees one picture.
"""

import argparse
import csv
import io
import json
import os
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import timm
import torch
from bench_embed import alone, corpus, decoding, tables, timed
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from caption import tagger
from shared.corpus import Corpus
from shared.device import devices

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
    places = pq.read_table(done["ingest"], columns=["location"])["location"].to_pylist()[: count + 3]
    files = Corpus(str(source))
    start = 0.0
    for number, place in enumerate(places):
        if number == 3:
            start = time.perf_counter()
        with Image.open(io.BytesIO(files.read(place))) as image, torch.inference_mode():
            side = max(image.size)
            square = Image.new("RGB", (side, side), "white")
            square.paste(image.convert("RGB"), ((side - image.width) // 2, (side - image.height) // 2))
            module(prepare(square)[None].flip(1).to(devices()[0])).sigmoid().cpu()
    return (len(places) - 3) / (time.perf_counter() - start)


def main() -> None:
    """All of them, on one corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="eva02_large_patch14_448")
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=128)
    gpu = torch.cuda.is_available()
    parser.add_argument("--decode", nargs="+", default=["gpu", "reduced"] if gpu else ["reduced", "full"])
    parser.add_argument("--plain", type=int, default=30)
    args = parser.parse_args()
    place = torch.cuda.get_device_name() if gpu else "CPU"
    print(f"{place}, {os.cpu_count()} cores, torch {torch.__version__}, timm {timm.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        source, model = Path(temporary) / "source", Path(temporary) / "model"
        source.mkdir()
        model.mkdir()
        corpus(source, args.pictures)
        done = tables(source, Path(temporary))
        threshold = checkpoint(model, args.architecture)
        settings = {"model": str(model), "thresholds": {"general": threshold}, "batch": args.batch}
        reference = plain(source, done, str(model), args.plain)
        loaded, _ = tagger.load_tagger(tagger.STAGE.settings(**settings))
        model_alone = alone(loaded, args)
        print(f"{args.architecture}: the model alone {model_alone:,.0f}/s, plain loop {reference:,.0f}/s")
        for decode in args.decode:
            rows = max(args.batch, min(4096, args.pictures // 4))
            _, found = timed("tagger", tagger.STAGE, source, done, decode=decode, shard_rows=rows, **settings)
            rate = decoding(source, done, loaded.geometry, args, decode)
            times = f"{found / reference:.1f} times the loop, {found / model_alone:.0%} of the model alone"
            print(f"    ours, {decode}: {found:,.0f}/s, {times}; processes alone {rate:,.0f}/s", flush=True)


if __name__ == "__main__":
    main()
