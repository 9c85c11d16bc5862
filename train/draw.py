"""`train sample`: prompts to PNG files, each of which says how it was made."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from shared.errors import UserError
from shared.files import atomic_file
from shared.progress import Meter
from train.cache.autoencoder import factor_of, load_autoencoder
from train.cache.compute import compute_dtype, default_device
from train.cache.hub import DRAWING, model_folder
from train.cache.reader import CacheReader
from train.cache.settings import CacheSettings
from train.loading import is_checkpoint, load_model, origin
from train.model.config import DiTConfig
from train.prompts import embed, encode
from train.sample import Picture, decode_latent, draw_latents, grid_of
from train.settings import DrawSettings
from train.sheet import contact_sheet


def draw(
    prompts: Sequence[str],
    out: Path,
    model: str,
    settings: DrawSettings,
    *,
    checkpoint: str | None,
    raw: bool,
    work: Path | None,
    sizes: Sequence[str],
    count: int,
    negative: str,
    grid: bool,
) -> list[Path]:
    """Draw `count` pictures of every prompt at every size into a folder, and with `grid` a sheet of all of them.

    Files are numbered on from those that are there. The pictures of one size have the seeds from the settings' on, in
    the order of the prompts. `model` is a pipeline, `checkpoint` what `load_model` takes, `work` has the cache that
    says how prompts are encoded. Raises UserError where these do not fit together, or a size cannot be drawn.
    """
    base, device = model_folder(model, DRAWING), default_device()
    config = DiTConfig.from_folder(base / "transformer")
    vae = load_autoencoder(base / "vae", compute_dtype(device)).to(device).eval()
    grids = {size: grid_of(size, factor_of(vae) * config.patch_size) for size in sizes}
    prefix, embeddings = _embeddings([*prompts, negative], model, work, config)
    transformer = load_model(checkpoint, base, raw).to(device, compute_dtype(device)).eval()

    numbered = enumerate(prompt for prompt in prompts for _ in range(count))
    wanted = [(prompt, settings.seed + number, size) for number, prompt in numbered for size in grids]
    pictures = [Picture(embeddings[prompt], grids[size], seed) for prompt, seed, size in wanted]
    facts = {**_origin(checkpoint or model, raw), "Prompt prefix": prefix}
    texts = [parameters(prompt, negative, settings, seed, size, facts) for prompt, seed, size in wanted]
    first = _next_number(out)
    files = [out / f"{number:05}.png" for number in range(first, first + len(pictures))]
    drawn = []
    with Meter("drawing", len(pictures) * settings.steps, "pictures", scale=settings.steps) as meter:
        latents = draw_latents(transformer, pictures, embeddings[negative], settings, stepped=meter.advance)
        for latent, text, file in zip(latents, texts, files, strict=True):
            drawn.append(decode_latent(vae, latent))
            _save(drawn[-1], file, text)
    if grid:
        files.append(out / f"grid-{first:05}.png")
        _save(contact_sheet(drawn, prompts), files[-1])
    return files


def parameters(
    prompt: str, negative: str, settings: DrawSettings, seed: int, size: str, further: Mapping[str, str]
) -> str:
    """How a picture was made, in the form of AUTOMATIC1111's web UI, which viewers and other programs read.

    The prompt, the negative prompt, and a line of `Name: value`, where a value with `,` or `:` is a JSON string.
    """
    facts = {
        "Steps": settings.steps,  # First: some readers look for it.
        "Sampler": "Euler",
        "CFG scale": settings.guidance,
        "Seed": seed,
        "Size": size,
        "Shift": settings.shift,
        "Guidance until": settings.guidance_until,
        **further,
    }
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in facts.items())
    return "\n".join([prompt, *([f"Negative prompt: {negative}"] if negative else []), line])


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]|^\s|\s$", value) else value


def _origin(source: str, raw: bool) -> dict[str, str]:
    found = {"Model": source}
    if is_checkpoint(Path(source)):
        found |= {f"Model {name}": value for name, value in origin(Path(source), raw).items()}
    return found


def _embeddings(
    prompts: Sequence[str], model: str, work: Path | None, config: DiTConfig
) -> tuple[str, dict[str, Tensor]]:
    """What is put before prompts, and embeddings by prompt."""
    if work is None:
        settings = CacheSettings()
        distinct = list(dict.fromkeys(prompts))
        return settings.prompt_prefix, encode(distinct, model, settings.prompt_prefix, settings.max_tokens)
    reader = CacheReader(work)
    if reader.text_dim != config.cap_feat_dim:
        raise UserError(
            f"{work}: the embeddings of its cache have the width {reader.text_dim}, the transformer of {model} takes "
            f"{config.cap_feat_dim}; give the pipeline that `cache-latents` was given as --model"
        )
    return reader.text_settings["prompt_prefix"], embed(prompts, model, work, reader)


def _next_number(folder: Path) -> int:
    """Behind all pictures that a folder has."""
    names = (re.fullmatch(r"(\d+)\.png", path.name) for path in folder.glob("*.png"))
    return max((int(name[1]) + 1 for name in names if name), default=0)


def _save(picture: Image.Image, path: Path, text: str | None = None) -> None:
    info = PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)
