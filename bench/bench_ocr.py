"""The stage `ocr`, from files to its table, against RapidOCR in a loop over the same files.

    python bench/bench_ocr.py
    python bench/bench_ocr.py --pictures 200 --cores 8

Pictures are drawings of about 1.8 megapixels, as JPEG, with none to six lines of text in fonts and sizes drawn by
chance. RapidOCR runs as its users run it, with all threads on one picture. Both times are with the loading of the
models, ours also with the start of the processes. Fails where the two do not find the same lines.
"""

import argparse
import hashlib
import random
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from bench_ingest import illustration
from PIL import Image, ImageDraw, ImageFont

from caption import ocr
from shared.engine import LocalEngine
from shared.stages import DECISIONS, Job

FONTS = Path(str(find_spec("matplotlib").origin)).parent / "mpl-data/fonts/ttf"
FACES = ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "STIXGeneralItalic.ttf"]
WORDS = ["frog", "pond", "Good", "Morning", "HELLO", "rain", "tea", "little", "green", "what is", "oh no", "RIBBIT"]


def picture(seed: int) -> Image.Image:
    """A drawing with text on it."""
    chance = random.Random(seed)
    image = illustration(seed)
    pen = ImageDraw.Draw(image)
    for row in chance.sample(range(8), chance.choice([0, 0, 1, 2, 4, 6])):
        face = ImageFont.truetype(str(FONTS / chance.choice(FACES)), chance.randint(22, 90))
        text = " ".join(chance.choices(WORDS, k=chance.randint(1, 4)))
        place = chance.randint(20, 400), 40 + 130 * row
        pen.text(place, text, chance.choice(["black", "navy"]), face, stroke_width=2, stroke_fill="white")
    return image


def make_job(base: Path, source: Path, cores: int) -> Job[Any]:
    """The stage over all files of a folder, as `curate run` gives it."""
    ids = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(source.iterdir())}
    for table in "ingest", "near", "ocr":
        (base / table).mkdir()
    known = [{"image_id": image_id, "location": name, "error": None} for name, image_id in ids.items()]
    schema = pa.schema([(name, pa.string()) for name in ("image_id", "location", "error")])
    pq.write_table(pa.Table.from_pylist(known, schema), base / "ingest/part-0.parquet")
    decided = [{"image_id": image_id, "keep": True} for image_id in ids.values()]
    pq.write_table(pa.Table.from_pylist(decided, DECISIONS), base / "near/part-0.parquet")
    return Job(
        source=str(source),
        settings=ocr.STAGE.settings(shard_rows=4),  # Small, for so few pictures.
        folder=base / "ocr",
        tables={"ingest": base / "ingest", "near": base / "near"},
        deciders=("near",),
        engine=LocalEngine(cores),
    )


def ours(job: Job[Any]) -> dict[str, list[str]]:
    """The lines in each picture, by its id."""
    ocr.STAGE.run(job)
    rows = [row for part in sorted(job.folder.glob("part-*")) for row in pq.read_table(part).to_pylist()]
    return {row["image_id"]: sorted(line["text"] for line in row["texts"]) for row in rows}


def theirs(paths: Sequence[Path]) -> dict[str, list[str]]:
    """The same, in a plain loop."""
    from rapidocr import RapidOCR

    reader = RapidOCR(params={"Global.log_level": "critical"})
    return {hashlib.sha256(path.read_bytes()).hexdigest(): sorted(reader(path).txts or ()) for path in paths}


def main() -> None:
    """Both ways, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        for seed in range(arguments.pictures):
            picture(seed).save(source / f"{seed:05}.jpg", quality=92)
        job = make_job(Path(folder), source, arguments.cores)
        start = time.perf_counter()
        found = ours(job)
        middle = time.perf_counter()
        expected = theirs(sorted(source.iterdir()))
        end = time.perf_counter()
    different = [image_id for image_id in expected if expected[image_id] != found[image_id]]
    print(f"{len(expected)} pictures, {sum(map(len, expected.values()))} lines, {len(different)} pictures differ")
    print(f"ours, {arguments.cores} processes   {len(found) / (middle - start):.2f} pictures/s")
    print(f"RapidOCR, plain loop   {len(found) / (end - middle):.2f} pictures/s")
    print(f"ratio {(end - middle) / (middle - start):.2f}")
    if different:
        raise SystemExit("the two do not read the same")


if __name__ == "__main__":
    main()
