"""`cache-latents estimate`: bytes and GPU hours of a cache before it is made, from the curated table alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from diffusers import AutoencoderKL
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer

from shared.progress import console
from shared.worklist import all_shards
from train.cache.curated import caption_variants, open_curated
from train.cache.existing import latents_of, text_of
from train.cache.latents import PATCH
from train.cache.manifest import CacheLayout
from train.cache.resolution import fit
from train.cache.settings import CacheSettings
from train.cache.stored import size as stored_size

CLASSES = (256, 512, 768, 1024, 1536, 2048)
"""Sides of squares: a picture counts to the smallest in which its pixels have room."""
SAMPLE = 2000
"""Captions of each variant whose tokens are counted."""


@dataclass(frozen=True)
class Line:
    """Pictures of an area and size, or the captions of a variant."""

    kind: str
    size: str
    items: int
    cached: int
    bytes: int
    """Of all items, the cached ones too."""
    seconds: float
    """Of one GPU, for those that are not cached."""

    @property
    def bytes_left(self) -> int:
        """Of the items that are not cached."""
        return round(self.bytes * (self.items - self.cached) / self.items)


def estimate(
    work: Path, model: str, settings: CacheSettings, pictures_per_second: float, captions_per_second: float
) -> list[Line]:
    """Lines for every area and class of sizes, then for every caption variant.

    Of the model, only configurations and tokenizer are read: `model` may be a hub's name. Raises UserError where there
    is no curated dataset.
    """
    folder = Path(model) if Path(model).is_dir() else None
    with open_curated(work) as database:
        layout = CacheLayout(work)
        lines = [
            line
            for area in settings.areas
            for line in _latents(database, layout, model, folder, settings, area, pictures_per_second)
        ]
        return lines + list(_texts(database, layout, model, folder, settings, captions_per_second))


def _done(folders: Sequence[Path], keys: list[str]) -> pa.Table:
    """The items of all finished shards of some work lists."""
    shards = [shard for folder in folders for shard in all_shards(folder) if shard.part.exists()]
    empty = pa.table({key: pa.array([], pa.string()) for key in keys})
    return pa.concat_tables([empty, *(shard.items().select(keys).cast(empty.schema) for shard in shards)])


def _latents(
    database: duckdb.DuckDBPyConnection,
    layout: CacheLayout,
    model: str,
    folder: Path | None,
    settings: CacheSettings,
    area: int,
    rate: float,
) -> Iterator[Line]:
    config: dict[str, Any] = AutoencoderKL.load_config(model, subfolder="vae")
    factor, channels = 2 ** (len(config["block_out_channels"]) - 1), config["latent_channels"]
    done = _done([layout.latents(about) for about in latents_of(layout, settings, area, folder)], ["image_id"])
    database.register("done", done)
    sizes = database.execute(
        "SELECT width, height, count(*), count(*) FILTER (image_id IN (FROM done)) FROM curated GROUP BY ALL"
    ).fetchall()
    classes: dict[int | None, list[tuple[int, int, int]]] = {}
    for width, height, count, cached in sizes:
        size = fit(width, height, area, factor * PATCH)
        pixels = size.width * size.height if size else 0
        side = next((side for side in CLASSES if pixels <= side**2), area) if size else None
        classes.setdefault(side, []).append((pixels, count, cached))
    for side, found in sorted(classes.items(), key=lambda item: item[0] or 0):
        yield Line(
            kind=f"latents {area} px",
            size="too small" if side is None else f"up to {side} px",
            items=sum(count for _, count, _ in found),
            cached=sum(cached for *_, cached in found),
            bytes=sum(
                stored_size(pixels // factor**2 * channels, settings.latent_dtype) * count for pixels, count, _ in found
            ),
            seconds=sum(pixels * (count - cached) for pixels, count, cached in found) / 1024**2 / rate,
        )


def _texts(
    database: duckdb.DuckDBPyConnection,
    layout: CacheLayout,
    model: str,
    folder: Path | None,
    settings: CacheSettings,
    rate: float,
) -> Iterator[Line]:
    dim: int = AutoConfig.from_pretrained(model, subfolder="text_encoder").hidden_size
    tokenizer: Any = AutoTokenizer.from_pretrained(model, subfolder="tokenizer")
    prefix = len(tokenizer(settings.prompt_prefix.rstrip()).input_ids) if settings.prompt_prefix.strip() else 0
    folders = [layout.text(about) for about in text_of(layout, settings, folder)]
    for variant in caption_variants(database):
        database.register("done", _done([folder / variant for folder in folders], ["image_id", "caption_sha"]))
        found = database.execute(
            "SELECT count(*), count(*) FILTER ((image_id, caption_sha) IN (FROM done)) FROM captions WHERE variant = ?",
            [variant],
        ).fetchall()
        ((items, cached),) = found
        sample = database.execute(
            f"SELECT text FROM captions WHERE variant = ? ORDER BY caption_sha, image_id LIMIT {SAMPLE}", [variant]
        ).fetchall()
        texts = [settings.prompt_prefix + text for (text,) in sample]
        ids = tokenizer(texts, truncation=True, max_length=settings.max_tokens).input_ids
        tokens = sum(map(len, ids)) / len(ids)
        sizes = [stored_size(max(len(row) - prefix, 0) * dim, settings.text_dtype) for row in ids]
        yield Line(
            kind=f"captions {variant}",
            size=f"{tokens:.0f} tokens",
            items=items,
            cached=cached,
            bytes=round(items * sum(sizes) / len(sizes)),
            seconds=(items - cached) * tokens / 100 / rate,
        )


def show(lines: Sequence[Line], pictures_per_second: float, captions_per_second: float) -> None:
    """Print the lines as a table, and the assumptions behind it."""
    totals = (
        sum(line.bytes for line in lines) / 1e9,
        sum(line.bytes_left for line in lines) / 1e9,
        sum(line.seconds for line in lines) / 3600,
    )
    table = Table("", "size", "number", "GB", "GB left", "h left", show_footer=True)  # For 80 columns.
    for column, footer in zip(table.columns, ("together", "", "", *map(_short, totals)), strict=True):
        column.footer, column.no_wrap = footer, True
        column.justify = "left" if column in table.columns[:2] else "right"
    for line in lines:
        numbers = (line.bytes / 1e9, line.bytes_left / 1e9, line.seconds / 3600)
        table.add_row(line.kind, line.size, f"{line.items:,}", *map(_short, numbers))
    console.print(table)
    console.print(
        f"hours are for a GPU that encodes {pictures_per_second:,g} pictures of 1024 x 1024 px a second, others by "
        f"their pixels, and {captions_per_second:,g} captions of 100 tokens, others by theirs",
        soft_wrap=True,
    )
    console.print(f"tokens are those of {SAMPLE:,} captions of each variant", soft_wrap=True)


def _short(number: float) -> str:
    return f"{number:,.2f}" if number < 100 else f"{number:,.0f}"
