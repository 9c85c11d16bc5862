"""The grids a run draws of itself: fixed prompts and seed, so that only the weights differ between two."""

from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderKL
from torch import Tensor

from shared.errors import UserError
from shared.files import atomic_file
from train.cache.compute import default_device
from train.cache.reader import CacheReader
from train.cache.text_encoder import TextEncoder
from train.model.dit import Lumina2DiT
from train.sample import decode_latents, draw_latents, grid_picture
from train.settings import SampleSettings

DEFAULT_PROMPTS = 8


class Sampler:
    """Draws the prompts of the settings with whatever weights a model holds."""

    def __init__(self, settings: SampleSettings, model_folder: Path, reader: CacheReader) -> None:
        self._settings = settings
        self._grid = _grid(settings, reader)
        self._labels, self._captions = _captions(settings.prompts, model_folder, reader)
        self._empty = reader.empty
        self._vae = AutoencoderKL.from_pretrained(model_folder, subfolder="vae").eval()

    def draw(self, model: Lumina2DiT, path: Path) -> Path:
        """Write one grid as PNG."""
        device = next(model.parameters()).device
        model.eval()
        latents = draw_latents(model, self._captions, self._empty, self._grid, self._settings)
        model.train()
        # The autoencoder is needed once in a while: it gives its memory back in between.
        pictures = decode_latents(self._vae.to(device), latents)
        self._vae.to("cpu")
        with atomic_file(path) as temporary:
            grid_picture(pictures, self._labels).save(temporary, format="PNG")
        return path


def _grid(settings: SampleSettings, reader: CacheReader) -> tuple[int, int]:
    """Rows and columns of a drawn picture, in tokens."""
    multiple = reader.multiple
    sides = (settings.height or reader.area, settings.width or reader.area)
    if any(side % multiple for side in sides):
        raise UserError(f"train.samples: {sides[1]} x {sides[0]} px; width and height must be multiples of {multiple}")
    return sides[0] // multiple, sides[1] // multiple


def _captions(prompts: Sequence[str], model_folder: Path, reader: CacheReader) -> tuple[list[str], list[Tensor]]:
    """Labels and embeddings of what to draw: the prompts, or else captions of the cache's first pictures."""
    if prompts:
        about = reader.text_settings
        encoder = TextEncoder(model_folder, about["prompt_prefix"], about["max_tokens"], default_device())
        return list(prompts), encoder.encode(prompts)
    labels, captions = [], []
    for index in range(reader.images):
        for variant in reader.variants(index)[:1]:
            labels.append(f"{reader.image_id(index)[:12]} {variant}")
            captions.append(reader.text(index, variant))
        if len(captions) == DEFAULT_PROMPTS:
            break
    return labels, captions
