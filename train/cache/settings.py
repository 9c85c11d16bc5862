"""Settings of `cache-latents`: the section `cache` of a pipeline."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from shared.settings import Settings

Dtype = Literal["bfloat16", "int8"]
"""In what form tensors are stored: int8 in blocks with a scale each takes 8.5 bits per number (see `int8`)."""

Area = Annotated[int, Field(ge=16, le=8192)]


def _ascending(areas: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(areas)))


class CacheSettings(Settings):
    """How pictures and captions become tensors. Everything here is part of a fingerprint."""

    areas: Annotated[tuple[Area, ...], AfterValidator(_ascending)] = Field(default=(1024,), min_length=1)
    """Sides of the squares to whose areas a picture is scaled down, in pixels: a latent for each. Smaller pictures keep
    their size."""
    prompt_prefix: str = (
        "You are an assistant designed to generate anime images based on textual prompts. <Prompt Start> "
    )
    """Put before every caption; the empty caption stays empty."""
    max_tokens: int = Field(default=256, ge=8, le=300)
    """Captions are cut at this many tokens, prefix and beginning-of-sequence token included."""
    shard_rows: int = Field(default=1024, ge=1)
    """Samples per shard: the unit of resume."""
    latent_dtype: Dtype = "bfloat16"
    """Form of the latents. `int8` halves their bytes, for an error that is measured."""
    text_dtype: Dtype = "bfloat16"
    """Form of the embeddings, likewise."""
    batch: int = Field(default=8, ge=1)
    """Pictures of equal size that are encoded together, of those above 1024 px fewer."""


SETTINGS = CacheSettings
