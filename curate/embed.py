"""The stage `embed`: an embedding of every picture that is still kept, for later stages to score and compare."""

from curate import vectors
from shared.stages import Job, Stage


class EmbedSettings(vectors.VectorSettings):
    """The image tower of a contrastive model."""

    model: str = "ViT-L-14"
    """A model of open_clip; `hf-hub:NAME` or `local-dir:FOLDER`."""
    pretrained: str | None = "openai"
    """A tag of open_clip or the file of a checkpoint; null with hf-hub: and local-dir:."""


def run(job: Job[EmbedSettings]) -> str:
    """Embed what is new."""

    def load() -> vectors.Model:
        from curate.clip import load_tower  # It imports PyTorch.

        return load_tower(job.settings.model, job.settings.pretrained, job.settings.exact)

    return vectors.run(job, load, "embedding")


STAGE = Stage(settings=EmbedSettings, version=1, run=run, incremental=True)
