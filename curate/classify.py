"""The stage `classify`: the probabilities of a classifier's classes, such as seven from worst to masterpiece."""

from typing import Any

from shared.errors import UserError
from shared.stages import Job, Stage
from shared.vision import table
from shared.vision.geometry import Geometry


class ClassifySettings(table.VisionSettings):
    """A classifier in timm's layout: a folder with config.json and model.safetensors."""

    model: str
    """`hf-hub:NAME` or `local-dir:FOLDER`."""


def run(job: Job[ClassifySettings]) -> str:
    """Classify what is new."""

    def load() -> tuple[table.Model, table.Columns]:
        return load_classifier(job.settings.model), table.halves

    return table.run(job, load, table.halves_field("probabilities"))


def load_classifier(model: str) -> table.Model:
    """A classifier of timm, followed by a softmax. Raises UserError where there is none, or one without weights."""
    try:
        import timm  # It imports PyTorch.
    except ModuleNotFoundError as error:
        raise UserError(f"classify: {error}; pip install 'illustrious-lu[aesthetic]'") from None
    from timm.data.config import resolve_model_data_config
    from torch import nn

    from shared.vision.weights import weights_hash

    if not model.startswith(("hf-hub:", "local-dir:")):
        raise UserError(f"classify.model = {model!r}: give hf-hub:NAME or local-dir:FOLDER")
    try:
        classifier: Any = timm.create_model(model, pretrained=True)
    except Exception as error:  # timm raises almost anything: names, downloads, shapes.
        raise UserError(
            f"classify.model = {model!r}: {error}; give a classifier in timm's layout, with config.json and "
            "model.safetensors"
        ) from None
    prepare: dict[str, Any] = resolve_model_data_config(classifier)  # type: ignore[no-untyped-call]
    geometry = Geometry(
        side=prepare["input_size"][-1],
        mode="squash" if prepare["crop_mode"] == "squash" else "crop",
        interpolation=prepare["interpolation"],
        crop=prepare["crop_pct"],
    )
    names = classifier.pretrained_cfg.get("label_names")
    return table.Model(
        module=nn.Sequential(classifier, nn.Softmax(dim=-1)),
        geometry=geometry,
        mean=prepare["mean"],
        std=prepare["std"],
        about={
            "model": model,
            "weights": weights_hash(classifier),
            "dim": classifier.num_classes,
            "preprocessing": prepare,
            "classes": list(names) if names else None,
        },
    )


STAGE = Stage(settings=ClassifySettings, version=1, run=run, incremental=True)
