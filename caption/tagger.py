"""The stage `tagger`: what a tagger of the WD family sees in a picture, and its rating.

The family: https://huggingface.co/SmilingWolf. A picture is padded with white to a square, scaled (bicubic), and its
channels are taken in the order blue, green, red.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from shared.errors import UserError
from shared.files import file_sha256
from shared.stages import TAG, Job, Stage
from shared.vision import table
from shared.vision.geometry import Geometry

if TYPE_CHECKING:
    from torch import nn

Category = Literal["general", "artist", "copyright", "character", "meta"]

CATEGORIES: dict[str, Category | Literal["rating"]] = {
    "0": "general",
    "1": "artist",
    "3": "copyright",
    "4": "character",
    "5": "meta",
    "9": "rating",
}
"""Danbooru's numbers, and 9 for ratings."""

THRESHOLDS = {
    "wd-vit-tagger-v3": 0.2614,
    "wd-swinv2-tagger-v3": 0.2653,
    "wd-convnext-tagger-v3": 0.2682,
    "wd-vit-large-tagger-v3": 0.2606,
    "wd-eva02-large-tagger-v3": 0.5296,
    "wd-v1-4-vit-tagger-v2": 0.3537,
    "wd-v1-4-convnext-tagger-v2": 0.3685,
    "wd-v1-4-convnextv2-tagger-v2": 0.3710,
    "wd-v1-4-swinv2-tagger-v2": 0.3771,
    "wd-v1-4-moat-tagger-v2": 0.3771,
}
"""Where precision and recall are equal, as published with each model. One for all would be wrong for most."""

TAGS, TIMM, ONNX = "selected_tags.csv", "model.safetensors", "model.onnx"


class TaggerSettings(table.VisionSettings):
    """A model, and from which probability on a tag is given."""

    model: str = "SmilingWolf/wd-eva02-large-tagger-v3"
    """A repository of the hub, or a folder: selected_tags.csv with model.safetensors and config.json (timm), or with
    model.onnx (ONNX Runtime)."""
    thresholds: dict[Category, float] = Field(default={})
    """By category. Default: the one published for the model, by the last part of its name."""
    mcut: bool = False
    """Where the thresholds are by picture instead: in the largest gap between two probabilities that follow one
    another (Largeron et al., "MCut: a thresholding strategy for multi-label classification", IDA 2012)."""
    runtime: Literal["timm", "onnx"] = "timm"
    """Which of the model's two files is used."""


@dataclass(frozen=True)
class Vocabulary:
    """What the numbers of a tagger speak of: (n,) each."""

    names: NDArray[np.str_]
    categories: NDArray[np.str_]

    def columns(
        self, thresholds: Mapping[str, float], mcut: bool, found: NDArray[np.float32], valid: pa.BooleanArray
    ) -> list[pa.Array]:
        """Tags (the most probable first within a picture) and rating of probabilities (pictures, n)."""
        given = np.zeros(found.shape, bool)
        for category in set(self.categories.tolist()) - {"rating"}:
            where = np.flatnonzero(self.categories == category)
            limit = gaps(found[:, where])[:, None] if mcut else thresholds[category]
            given[:, where] = found[:, where] >= limit
        given &= np.asarray(valid)[:, None]
        rows, tags = np.nonzero(given)  # Few of many: only these are put in order.
        order = np.lexsort((-found[rows, tags], rows))
        rows, tags = rows[order], tags[order]
        values = pa.StructArray.from_arrays(
            [
                pa.array(self.names[tags]),
                pa.array(self.categories[tags]),
                pa.array(["tagger"] * len(tags), pa.string()),
                pa.array(found[rows, tags]),
            ],
            fields=list(TAG),
        )
        offsets = np.concatenate([[0], np.cumsum(given.sum(axis=1))]).astype(np.int32)
        missing = pa.array(~np.asarray(valid))
        return [pa.ListArray.from_arrays(pa.array(offsets), values, mask=missing), *self._ratings(found, missing)]

    def _ratings(self, found: NDArray[np.float32], missing: pa.BooleanArray) -> list[pa.Array]:
        where = np.flatnonzero(self.categories == "rating")
        if not len(where):
            return [pa.nulls(len(found), pa.string()), pa.nulls(len(found), pa.float32())]
        best = found[:, where].argmax(axis=1)
        confidence = found[np.arange(len(found)), where[best]]
        mask = np.asarray(missing)
        return [pa.array(self.names[where[best]], mask=mask), pa.array(confidence, mask=mask)]


def gaps(found: NDArray[np.float32]) -> NDArray[np.float32]:
    """MCut: the middle of the largest gap between probabilities (pictures, n) that follow one another: (pictures,)."""
    if found.shape[1] < 2:
        return np.full(len(found), 0.5, np.float32)
    ordered = -np.sort(-found, axis=1)
    at = (ordered[:, :-1] - ordered[:, 1:]).argmax(axis=1)
    rows = np.arange(len(found))
    middle: NDArray[np.float32] = (ordered[rows, at] + ordered[rows, at + 1]) / 2
    return middle


FIELDS = [pa.field("tags", pa.list_(TAG)), pa.field("rating", pa.string()), pa.field("rating_confidence", pa.float32())]


def run(job: Job[TaggerSettings]) -> str:
    """Tag what is new."""
    return table.run(job, lambda: load_tagger(job.settings), lambda _: FIELDS)


def load_tagger(settings: TaggerSettings) -> tuple[table.Model, table.Columns]:
    """The model and what its probabilities become. Raises UserError where there is none, or no threshold for it."""
    weights = TIMM if settings.runtime == "timm" else ONNX
    folder = _folder(settings.model, [TAGS, weights, *(["config.json"] if settings.runtime == "timm" else [])])
    vocabulary = read_vocabulary(folder / TAGS)
    thresholds = _thresholds(settings, vocabulary)
    model = _timm(folder, settings.model) if settings.runtime == "timm" else _onnx(folder)
    model.about.update(
        {
            "model": settings.model,
            "weights": file_sha256(folder / weights)[:16],
            "tags": file_sha256(folder / TAGS)[:16],
            "thresholds": "mcut" if settings.mcut else thresholds,
        }
    )

    def columns(found: NDArray[np.float32], valid: pa.BooleanArray) -> list[pa.Array]:
        if found.shape[1] != len(vocabulary.names):
            raise UserError(
                f"{folder}: the model gives {found.shape[1]} numbers, {TAGS} has {len(vocabulary.names)} rows"
            )
        return vocabulary.columns(thresholds, settings.mcut, found, valid)

    return model, columns


def read_vocabulary(path: Path) -> Vocabulary:
    """The rows of a selected_tags.csv (name, category), in the order of the model's numbers."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    unknown = {row.get("category") for row in rows} - CATEGORIES.keys()
    if not rows or unknown or "name" not in rows[0]:
        raise UserError(
            f"{path}: must have the columns name and category (one of {', '.join(CATEGORIES)}); has {unknown}"
        )
    return Vocabulary(np.array([row["name"] for row in rows]), np.array([CATEGORIES[row["category"]] for row in rows]))


def _folder(model: str, files: list[str]) -> Path:
    """Where the files of a model lie; those of the hub are fetched."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        try:
            folder = Path(snapshot_download(model, allow_patterns=files))
        except (OSError, HFValidationError) as error:
            raise UserError(
                f"tagger.model = {model!r}: neither a folder nor to be had from the hub ({error})"
            ) from None
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise UserError(f"tagger.model = {model!r}: there is no {missing[0]} in {folder}")
    return folder


def _thresholds(settings: TaggerSettings, vocabulary: Vocabulary) -> dict[str, float]:
    published = THRESHOLDS.get(settings.model.rstrip("/").rpartition("/")[2])
    wanted = sorted(set(vocabulary.categories.tolist()) - {"rating"})
    found = {category: settings.thresholds.get(category, published) for category in wanted}
    missing = [category for category, threshold in found.items() if threshold is None]
    if missing and not settings.mcut:
        raise UserError(
            f"tagger.model = {settings.model!r}: no threshold is known for it; set tagger.thresholds.{missing[0]}, "
            "or tagger.mcut = true"
        )
    return {category: threshold for category, threshold in found.items() if threshold is not None}


def _timm(folder: Path, name: str) -> table.Model:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(f"tagger: {error}; pip install 'illustrious-lu[aesthetic]'") from None
    from timm.data.config import resolve_model_data_config

    try:
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # timm raises almost anything: names, shapes.
        raise UserError(f"tagger.model = {name!r}: {error}") from None
    prepare = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    return table.Model(
        module=_reversed_sigmoid(model),
        geometry=Geometry(prepare["input_size"][-1], "pad", prepare["interpolation"]),
        mean=prepare["mean"],
        std=prepare["std"],
        about={"runtime": "timm", "side": prepare["input_size"][-1]},
    )


def _reversed_sigmoid(model: "nn.Module") -> "nn.Module":
    """The model on pictures whose channels are red, green, blue; probabilities."""
    import torch
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.model(pictures.flip(1)).sigmoid()
            return found

    return Tagger()


def _onnx(folder: Path) -> table.Model:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(f"tagger: {error}; pip install onnxruntime or onnxruntime-gpu") from None
    import torch
    from torch import nn

    # TensorRT, which the package for GPUs names first, builds an engine for minutes, and anew for each size of a batch.
    providers = [name for name in onnxruntime.get_available_providers() if name != "TensorrtExecutionProvider"]
    session = onnxruntime.InferenceSession(folder / ONNX, providers=providers)
    (entry,) = session.get_inputs()

    class Tagger(nn.Module):
        """Levels (n, 3, side, side) to probabilities; the file wants (n, side, side, 3) in blue, green, red."""

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            levels = pictures.flip(1).permute(0, 2, 3, 1).contiguous().numpy()
            return torch.from_numpy(session.run(None, {entry.name: levels})[0])

    return table.Model(
        module=Tagger(),
        geometry=Geometry(entry.shape[1], "pad", "bicubic"),
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255, 1 / 255, 1 / 255),
        about={"runtime": "onnx", "side": entry.shape[1]},
        own_runtime=True,
    )


STAGE = Stage(settings=TaggerSettings, version=1, run=run, incremental=True)
