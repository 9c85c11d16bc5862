"""The grids a run draws of itself: fixed prompts, seeds and sizes, so that only the weights differ between two."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from shared.files import atomic_file
from train.cache.autoencoder import load_autoencoder
from train.cache.compute import compute_dtype, default_device
from train.cache.hub import DRAWING, model_folder
from train.cache.reader import CacheReader
from train.model.dit import Lumina2DiT
from train.prompts import embed
from train.sample import Picture, decode_latent, draw_latents, grid_of
from train.settings import SampleSettings
from train.sheet import contact_sheet

DEFAULT_PROMPTS = 8


class Sampler:
    """Draws the prompts of the settings, each at all sizes, with whatever weights a model holds."""

    def __init__(self, settings: SampleSettings, model: str, work: Path, reader: CacheReader) -> None:
        """`model` is a pipeline's folder or hub name, `reader` that of the cache of `work`."""
        self._settings = settings
        side = reader.area - reader.area % reader.multiple
        sizes = settings.sizes or (f"{side}x{side}",)
        grids = [grid_of(size, reader.multiple) for size in sizes]
        self._labels, captions = _captions(settings.prompts, model, work, reader)
        self._pictures = [
            Picture(caption, grid, settings.seed + number) for number, caption in enumerate(captions) for grid in grids
        ]
        self._empty = reader.empty
        self._vae = load_autoencoder(model_folder(model, DRAWING) / "vae", compute_dtype(default_device())).eval()

    def draw(self, model: Lumina2DiT, path: Path) -> Path:
        """Write one grid as PNG."""
        model.eval()
        latents = list(draw_latents(model, self._pictures, self._empty, self._settings))
        model.train()
        # The autoencoder is needed once in a while: it gives its memory back in between.
        self._vae.to(next(model.parameters()).device)
        pictures = [decode_latent(self._vae, latent) for latent in latents]
        self._vae.to("cpu")
        with atomic_file(path) as temporary:
            contact_sheet(pictures, self._labels).save(temporary, format="PNG")
        return path


def _captions(prompts: Sequence[str], model: str, work: Path, reader: CacheReader) -> tuple[list[str], list[Tensor]]:
    """Labels and embeddings of what to draw: the prompts, or else captions of the cache's first pictures."""
    if prompts:
        embeddings = embed(prompts, model, work, reader)
        return list(prompts), [embeddings[prompt] for prompt in prompts]
    labels, captions = [], []
    for index in range(reader.images):
        for variant in reader.variants(index)[:1]:
            labels.append(f"{reader.image_id(index)[:12]} {variant}")
            captions.append(reader.text(index, variant))
        if len(captions) == DEFAULT_PROMPTS:
            break
    return labels, captions
