"""Settings of `cache-latents`: the section `cache` of a pipeline."""

from pydantic import Field

from shared.settings import Settings


class CacheSettings(Settings):
    """How pictures and captions become tensors. Everything here is part of a fingerprint."""

    area: int = Field(default=1024, ge=16, le=8192)
    """Side of the square whose area a picture is scaled down to, in pixels. Smaller pictures keep their size."""
    prompt_prefix: str = (
        "You are an assistant designed to generate anime images based on textual prompts. <Prompt Start> "
    )
    """Put before every caption; the empty caption stays empty."""
    max_tokens: int = Field(default=256, ge=8, le=300)
    """Captions are cut at this many tokens, prefix and beginning-of-sequence token included."""
    shard_rows: int = Field(default=1024, ge=1)
    """Samples per shard: the unit of resume."""
    batch: int = Field(default=8, ge=1)
    """Pictures of equal size that are encoded together."""


SETTINGS = CacheSettings
