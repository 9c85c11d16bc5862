"""`curate.embed` with a LAION-shaped head, from tars to scores, against open_clip in a plain loop and the model alone.

    python bench/bench_embed.py [--model ViT-L-14] [--pictures 20000] [--batch 128] [--plain 200]

A generated corpus: JPEGs of 1600 x 1125 pixels in tars, as detailed as illustrations are; random weights. Ours: read,
decode, embed, score, write. Printed are pictures per second between the first part written and the last one, so
without the time in which the model is loaded and compiled. The plain loop decodes with Pillow, in one thread, and
computes pictures one by one, as the examples of open_clip do. The processes alone are the feeder without a model.
"""

import argparse
import hashlib
import io
import json
import math
import os
import tarfile
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bench_ingest import encoded, illustration
from PIL import Image
from safetensors.torch import save_file

from curate import aesthetic, embed
from curate.clip import load_tower
from curate.ingest import INGEST
from shared.corpus import Corpus, member
from shared.device import devices
from shared.engine import LocalEngine
from shared.stages import DECISIONS, Job, Stage
from shared.vision import Decode
from shared.vision.feeder import Batch, Feeder
from shared.vision.forward import Forward
from shared.vision.geometry import Geometry
from shared.vision.table import Model

CORES = len(os.sched_getaffinity(0))
DISTINCT = 48
TAR = 2000


def corpus(folder: Path, pictures: int) -> None:
    """Tars of pictures that differ in a comment at least, so that no two are the same file."""
    images = [encoded(illustration(seed, grain=5.0), "JPEG", quality=92) for seed in range(min(DISTINCT, pictures))]
    print(f"{pictures:,} JPEGs of {np.mean([len(data) for data in images]) / 1e6:.2f} MB", flush=True)
    for start in range(0, pictures, TAR):
        with tarfile.open(folder / f"{start // TAR:05}.tar", "w") as tar:
            for number in range(start, min(start + TAR, pictures)):
                data = images[number % len(images)]
                comment = f"{number:08}".encode()
                data = data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
                entry = tarfile.TarInfo(f"{number:08}.jpg")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def tables(source: Path, folder: Path) -> dict[str, Path]:
    """What the stages before `embed` would have written."""
    rows = []
    for path in sorted(source.glob("*.tar")):
        data = path.read_bytes()
        with tarfile.open(path) as tar:
            for entry in tar:
                bytes_ = data[entry.offset_data : entry.offset_data + entry.size]
                place = member(path.name, entry.name, entry.offset_data, entry.size)
                image_id = hashlib.sha256(bytes_).hexdigest()
                rows.append({"file": path.name, "stamp": "", "location": place, "image_id": image_id})
    for name, schema, columns in ("ingest", INGEST, {}), ("near", DECISIONS, {"keep": True}):
        (folder / name).mkdir()
        pq.write_table(pa.Table.from_pylist([row | columns for row in rows], schema), folder / name / "part-0.parquet")
    return {"ingest": folder / "ingest", "near": folder / "near"}


def checkpoint(folder: Path, model: str) -> str:
    """A model of open_clip with random weights, as a folder."""
    name = model.replace("/", "-")
    clip = open_clip.create_model(name, pretrained_text=False, pretrained_image=False)
    prepare = open_clip.get_model_preprocess_cfg(clip)
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": prepare}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {key: value.contiguous() for key, value in clip.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return f"local-dir:{folder}"


def ours(source: Path, done: dict[str, Path], model: str, args: argparse.Namespace, **settings: Any) -> float:
    """Pictures per second of the stages embed and aesthetic."""
    settings = {"model": model, "pretrained": None, "batch": args.batch, "shard_rows": args.shard_rows} | settings
    folder, rate = timed("embed", embed.STAGE, source, done, **settings)
    dim = json.loads((folder / "about.json").read_text())["dim"]
    save_file({"weight": torch.randn(1, dim), "bias": torch.zeros(1)}, source.parent / "head.safetensors")
    start = time.perf_counter()
    scored = Job(
        settings=aesthetic.STAGE.settings(heads={"laion": source.parent / "head.safetensors"}),
        folder=Path(tempfile.mkdtemp(dir=source.parent)),
        tables=done | {"embed": folder},
        **about(source),
    )
    aesthetic.STAGE.run(scored)
    return 1 / (1 / rate + (time.perf_counter() - start) / args.pictures)


def timed(name: str, stage: Stage, source: Path, done: dict[str, Path], **settings: Any) -> tuple[Path, float]:
    """Run a stage; its folder, and its pictures per second between the first part written and the last one."""
    folder = Path(tempfile.mkdtemp(dir=source.parent)) / name / "out"
    folder.mkdir(parents=True)
    with told(folder):
        stage.run(Job(settings=stage.settings(**settings), folder=folder, tables=done, **about(source)))
    return folder, rate(folder)


def rate(folder: Path) -> float:
    """Pictures per second between the first part written and the last one: the first is for warming up."""
    first, *others = sorted(folder.glob("part-*"), key=lambda part: part.stat().st_mtime_ns)
    seconds = (others[-1].stat().st_mtime_ns - first.stat().st_mtime_ns) / 1e9
    return sum(pq.ParquetFile(part).metadata.num_rows for part in others) / seconds


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Print the rate so far whenever there is another part, so that something is known of a run that is cut off."""
    end = threading.Event()

    def tell() -> None:
        known = 1
        while not end.wait(2.0):
            if (parts := len(list(folder.glob("part-*")))) > known:
                known = parts
                print(f"        {parts} parts, {rate(folder):,.1f}/s", flush=True)

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def about(source: Path) -> dict[str, Any]:
    """What jobs on a corpus have in common."""
    return {"source": str(source), "deciders": ("near",), "engine": LocalEngine(CORES)}


def decoding(
    source: Path, done: dict[str, Path], geometry: Geometry, args: argparse.Namespace, decode: Decode
) -> float:
    """Pictures per second that the processes can decode, or prepare for the GPU."""
    rows = pq.read_table(done["ingest"], columns=["image_id", "location"]).to_pylist()[: args.pictures // 4]
    items = [{"image_id": row["image_id"], "locations": [row["location"]]} for row in rows]
    with Feeder(Corpus(str(source)), geometry, decode, 10**9, args.batch, CORES) as feeder:
        finished: list[float] = []
        waiting: deque[Batch] = deque()

        def finish() -> None:
            batch = waiting.popleft()
            batch.problems()
            feeder.release(batch)
            finished.append(time.perf_counter())

        for at in range(0, len(items), args.batch):
            while (batch := feeder.feed(items[at : at + args.batch], wait=not waiting)) is None:
                finish()
            waiting.append(batch)
        while waiting:
            finish()
    # Of a single batch there is no rate: nan.
    return (len(items) - args.batch) / (finished[-1] - finished[0]) if len(finished) > 1 else math.nan


def alone(model: Model, args: argparse.Namespace) -> float:
    """Pictures per second of the model on the device, on pixels that are there."""
    forward = Forward(model.module, model.mean, model.std, devices()[0], "float16")
    side = model.geometry.side
    pixels = torch.randint(256, (args.batch, side, side, 3), dtype=torch.uint8, device=devices()[0])
    for _ in range(3):
        forward.launch(pixels).result()
    rounds = 40 if torch.cuda.is_available() else 3
    start = time.perf_counter()
    pending = [forward.launch(pixels) for _ in range(rounds)]
    for one in pending:
        one.result()
    return rounds * args.batch / (time.perf_counter() - start)


def plain(source: Path, done: dict[str, Path], model: str, count: int) -> float:
    """Pictures per second of the loop in open_clip's own examples, with a head."""
    clip, _, prepare = open_clip.create_model_and_transforms(model, device=devices()[0])
    clip.eval()
    head = torch.randn(clip.visual.output_dim if hasattr(clip.visual, "output_dim") else 1152, 1, device=devices()[0])

    def score(image: Image.Image) -> None:
        picture = prepare(image)[None].to(devices()[0])
        (clip.encode_image(picture, normalize=True) @ head).item()

    return one_by_one(source, done, count, score)


def one_by_one(source: Path, done: dict[str, Path], count: int, look: Callable[[Image.Image], None]) -> float:
    """Pictures per second that Pillow decodes and something looks at, one after the other."""
    places = pq.read_table(done["ingest"], columns=["location"])["location"].to_pylist()[: count + 3]
    files = Corpus(str(source))
    start = 0.0
    for number, place in enumerate(places):
        if number == 3:
            start = time.perf_counter()
        with Image.open(io.BytesIO(files.read(place))) as image, torch.inference_mode():
            look(image.convert("RGB"))
    return (len(places) - 3) / (time.perf_counter() - start)


def arguments(description: str | None, loop: int) -> argparse.ArgumentParser:
    """What the benches of models that look at pictures can be told; the plain loop has `loop` pictures by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=128)
    gpu = torch.cuda.is_available()
    parser.add_argument("--decode", nargs="+", default=["gpu", "reduced"] if gpu else ["reduced", "full"])
    parser.add_argument("--plain", type=int, default=loop)
    return parser


def place() -> str:
    """Where it is measured."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{name}, {CORES} cores, torch {torch.__version__}"


def compare(
    name: str,
    model: Model,
    loop: float,
    source: Path,
    done: dict[str, Path],
    args: argparse.Namespace,
    ours: Callable[[Decode], float],
) -> None:
    """Print the pictures per second of a model: alone, in a plain loop, in ours with each way to decode."""
    model_alone = alone(model, args)
    print(f"{name}: the model alone {model_alone:,.0f}/s, plain loop {loop:,.0f}/s", flush=True)
    for decode in args.decode:
        found = ours(decode)
        times = f"{found / loop:.1f} times the loop, {found / model_alone:.0%} of the model alone"
        print(f"    ours, {decode}: {found:,.0f}/s, {times}", flush=True)
        print(f"        its processes alone: {decoding(source, done, model.geometry, args, decode):,.0f}/s", flush=True)


def main() -> None:
    """All of them, on one corpus."""
    parser = arguments(__doc__, 200)
    parser.add_argument("--model", nargs="+", default=["ViT-L-14"])
    parser.add_argument("--shard-rows", type=int, default=4096)
    args = parser.parse_args()
    print(place())
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        source.mkdir()
        corpus(source, args.pictures)
        done = tables(source, Path(temporary))
        for name in args.model:
            folder = Path(temporary) / name
            folder.mkdir()
            model = checkpoint(folder, name)
            loop = plain(source, done, model, args.plain)
            run = partial(ours, source, done, model, args)
            compare(name, load_tower(model, None), loop, source, done, args, lambda decode, run=run: run(decode=decode))


if __name__ == "__main__":
    main()
