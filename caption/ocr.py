"""The stage `ocr`: text that can be read in a picture, by the models that come with RapidOCR.

Every process reads with one thread of its own: two pictures at once are done sooner than two threads on one picture.
"""

from collections.abc import Sequence
from functools import cache, partial
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt

from caption.reading import Line, rows, script
from shared.about import ABOUT, claim, read_about
from shared.corpus import Corpus
from shared.errors import UserError
from shared.files import atomic_file, file_sha256
from shared.fingerprint import fingerprint
from shared.images import MAX_PIXELS, Unreadable, decode
from shared.settings import Settings
from shared.stages import PICTURES, Job, Stage
from shared.worklist import Shard, WorkList, process

OCR = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field(
            "texts",
            pa.list_(
                pa.struct(
                    [
                        pa.field("text", pa.string(), nullable=False),
                        pa.field("confidence", pa.float32(), nullable=False),
                        pa.field("box", pa.list_(pa.float32()), nullable=False),
                        pa.field("script", pa.string(), nullable=False),
                        pa.field("watermark", pa.bool_(), nullable=False),
                    ]
                )
            ),
        ),
        pa.field("text", pa.string()),
        pa.field("text_area", pa.float32()),
        pa.field("watermark", pa.bool_()),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""`texts` are the lines in reading order, each with its corners (x0, y0, ..., x3, y3; 0 to 1 of the upright picture);
`text` is what of them is legible and no watermark, null where nothing is; `text_area` is the share of the picture
that legible lines cover. All are null where `error` says why."""

_PARAMETERS = {
    "Global.log_level": "critical",
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,  # A quarter faster, with the same numbers.
}


class OcrSettings(Settings):
    """Which lines are legible, and how pictures are decoded."""

    min_confidence: float = Field(default=0.7, ge=0, le=1)
    """A line below is not legible: it is in `texts`, but not in `text`."""
    max_pixels: PositiveInt = MAX_PIXELS
    """As in `ingest`."""
    shard_rows: PositiveInt = 64
    """Pictures per shard, the unit of resume."""


class Text(TypedDict):
    """A line in the table."""

    text: str
    confidence: float
    box: list[float]
    script: str
    watermark: bool


class Row(TypedDict, total=False):
    """A row of the table; what is not there is null."""

    image_id: str
    texts: list[Text]
    text: str | None
    text_area: float
    watermark: bool
    error: str
    detail: str


def run(job: Job[OcrSettings]) -> str:
    """Read what is new; returns a digest of the pictures and of what read them."""
    work = WorkList(job.folder, ("image_id",), job.settings.shard_rows)
    with job.connect() as connection:
        digest = work.follow(connection, PICTURES)
    shards = work.shards()
    if not all(shard.part.exists() for shard in shards) or not (job.folder / ABOUT).exists():
        check_installed()
        claim(job.folder, made_by())
        process(shards, partial(read_shard, Corpus(job.source), job.settings), job.engine, "ocr", "pictures")
    work.allow_empty(OCR)
    return fingerprint([digest, read_about(job.folder)])


def made_by() -> dict[str, Any]:
    """What the lines depend on: RapidOCR and the models that come inside it (not those that somebody put beside)."""
    package = distribution("rapidocr")
    models = sorted(file for file in package.files or () if file.suffix == ".onnx")
    hashes = {model.name: file_sha256(Path(str(model.locate())))[:16] for model in models}
    return {"rapidocr": package.version, "models": hashes}


def check_installed() -> None:
    """Raises UserError where RapidOCR or what it computes with is missing."""
    try:
        for module in ("rapidocr", "onnxruntime"):
            import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"ocr: {error}; pip install 'illustrious-lu[ocr]'") from None


def read_shard(corpus: Corpus, settings: OcrSettings, shard: Shard) -> None:
    """Write the part of one shard."""
    read = [read_picture(corpus, settings, **item) for item in shard.items().to_pylist()]
    with atomic_file(shard.part) as temporary:
        pq.write_table(pa.Table.from_pylist(read, OCR), temporary)


def read_picture(corpus: Corpus, settings: OcrSettings, image_id: str, locations: Sequence[str]) -> Row:
    """The row of one picture."""
    try:
        image = decode(corpus.read_picture(image_id, locations), settings.max_pixels).image
        lines = find_lines(image)
    except Unreadable as problem:
        return {"image_id": image_id, "error": problem.reason, "detail": problem.detail}
    return {"image_id": image_id, **summary(lines, image.size, settings.min_confidence)}


def summary(lines: Sequence[Line], size: tuple[int, int], min_confidence: float) -> Row:
    """What the table says of the lines of a picture of width and height `size`."""
    texts, said = [], []
    for row in rows(lines):
        legible = []
        for line in row:
            overlay = line.is_overlay(size, min_confidence)
            if line.is_legible(min_confidence) and not overlay:
                legible.append(line.text)
            texts.append(
                Text(
                    text=line.text,
                    confidence=line.confidence,
                    box=(line.corners / size).ravel().tolist(),
                    script=script(line.text),
                    watermark=overlay,
                )
            )
        if legible:
            said.append(" ".join(legible))
    return {
        "texts": texts,
        "text": "\n".join(said) or None,
        # A round face is found as a large O: what is not legible is as likely no text at all.
        "text_area": covered([line.corners for line in lines if line.is_legible(min_confidence)]) / (size[0] * size[1]),
        "watermark": any(text["watermark"] for text in texts),
    }


def covered(boxes: Sequence[NDArray[np.float64]]) -> float:
    """Square pixels that are inside any of the boxes, (4, 2) each."""
    import shapely  # RapidOCR brings it.

    if not boxes:
        return 0.0
    # A hull, for the corners of a slanted box may be in an order that crosses itself.
    return float(shapely.union_all(shapely.convex_hull(shapely.polygons(np.stack(boxes)))).area)


def find_lines(image: Image.Image) -> list[Line]:
    """The lines of a picture, in no particular order. Raises Unreadable where the models cannot look at it."""
    read = reader()
    try:
        found = read(image)
        if found.txts is None:
            return []
        boxes = np.asarray(found.boxes, np.float64)
        return [Line(*line) for line in zip(found.txts, found.scores, boxes, strict=True)]
    except Exception as error:  # Whatever a shape nobody thought of makes of OpenCV or ONNX Runtime.
        raise Unreadable("ocr_failed", f"{type(error).__name__}: {error}") from None


@cache
def reader() -> Any:
    """RapidOCR with the models in its package; one per process, for it takes a second to load them."""
    import cv2
    from rapidocr import RapidOCR

    cv2.setNumThreads(1)
    return RapidOCR(params=_PARAMETERS)


STAGE = Stage(settings=OcrSettings, version=2, run=run, incremental=True)
