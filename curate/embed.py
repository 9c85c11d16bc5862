"""The stage `embed`: an embedding of every picture that is still kept, for later stages to score and compare."""

from shared.errors import UserError
from shared.stages import Job, Stage
from shared.vision import table


class EmbedSettings(table.VisionSettings):
    """The image tower of a contrastive model."""

    model: str = "ViT-L-14"
    """A model of open_clip; `hf-hub:NAME` or `local-dir:FOLDER`."""
    pretrained: str | None = "openai"
    """A tag of open_clip or the file of a checkpoint; null with hf-hub: and local-dir:."""


def run(job: Job[EmbedSettings]) -> str:
    """Embed what is new."""

    def load() -> tuple[table.Model, table.Columns]:
        try:
            from curate.clip import load_tower  # It imports PyTorch.
        except ModuleNotFoundError as error:
            raise UserError(f"embed: {error}; pip install 'illustrious-lu[aesthetic]'") from None
        return load_tower(job.settings.model, job.settings.pretrained), table.halves

    return table.run(job, load, table.halves_field("embedding"))


STAGE = Stage(settings=EmbedSettings, version=1, run=run, incremental=True)
