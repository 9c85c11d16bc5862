"""Reading the cache: any tensor of any picture with one `pread` or one request, its CRC always checked."""

import hashlib
from collections.abc import Iterable, Mapping
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import UserError
from shared.files import os_error
from shared.tensors import CorruptTensor, Page, check_page
from train.cache.error import Errors
from train.cache.manifest import read_about
from train.cache.settings import Dtype
from train.cache.store import Store, cache_store
from train.cache.stored import from_bytes


class _Places:
    """Where tensors lie: a manifest table as arrays, without a Python object per row."""

    def __init__(self, store: Store, name: str, written: str, rows: slice = slice(None)) -> None:
        file = f"manifest/{name}.parquet"
        data = store.read_all(file)
        if (found := hashlib.sha256(data).hexdigest()) != written:
            raise UserError(
                f"{store.root}/{file}: damaged: sha256 {found[:16]} where {written[:16]} was written; "
                "run `cache-latents finalize`, which writes it anew"
            )
        self.table = pq.read_table(pa.BufferReader(data), read_dictionary=["file", "variant"])[rows]
        self.files, self.file = self.coded("file")
        self.row, self.offset, self.length, self.crc = (
            self.column(name) for name in ("row", "offset", "length", "crc")
        )

    def column(self, name: str) -> NDArray[Any]:
        """A numeric column."""
        values: NDArray[Any] = self.table[name].to_numpy()
        return values

    def coded(self, name: str) -> tuple[list[str], NDArray[np.int32]]:
        """The distinct values of a text column, and the index of each row's value among them."""
        chunks = self.table[name].unify_dictionaries().chunks
        names = chunks[0].dictionary.to_pylist() if chunks else []
        return names, np.concatenate([np.empty(0, np.int32), *(chunk.indices.to_numpy() for chunk in chunks)])

    def page(self, index: int) -> Page:
        """The place of a row's tensor within its file."""
        return Page(int(self.offset[index]), int(self.length[index]), int(self.crc[index]))


class CacheReader:
    """The finished cache of a work directory, which is a path or an address that fsspec knows (s3://bucket/work).

    Images have indices 0 .. images - 1, in the order of their ids, the same for every area. The latents are those of
    `area`, one of the cache's, by default the largest. Threads may share a reader; pickled, it is opened
    anew by the process that unpickles it.

    Raises UserError where there is no finished cache or none of that area, where its manifest is damaged, or where that
    does not say what is `expected` (see `manifest.read_about`).
    """

    def __init__(
        self,
        work: Path | str,
        expected: Mapping[str, Mapping[str, Any]] | None = None,
        area: int | None = None,
    ) -> None:
        self._work = work
        self._store = cache_store(work)
        about = read_about(work, expected)
        self.identity: str = about["identity"]
        self.text_settings: dict[str, Any] = about["text"]
        self._shared = about["shared"]
        self.latent_settings: dict[str, Any] = about["latents"]
        latents = self.latent_settings
        self.areas: list[int] = latents["areas"]
        """Sides of the squares for whose areas there are latents, ascending."""
        self.factor: int = latents["factor"]
        self.multiple: int = latents["multiple"]
        self.channels: int = latents["channels"]
        self.scaling_factor: float = latents["scaling_factor"]
        self.shift_factor: float = latents["shift_factor"]
        self.text_dim: int = about["text"]["dim"]
        self._latent_dtype: Dtype = latents["dtype"]
        self._text_dtype: Dtype = self.text_settings["dtype"]
        self.error: Errors = about.get("error", {})
        """What storing as int8 has cost."""
        self.images: int = about["images"]
        self._written = about["files"]
        self._open_area(area or self.areas[-1])
        self._texts = _Places(self._store, "text", self._written["manifest/text.parquet"])
        # Texts are sorted by image: those of image i are rows _first_text[i] to _first_text[i + 1].
        self._first_text = np.searchsorted(self._texts.column("image"), np.arange(self.images + 1))
        self._tokens, self._shared_rows = self._texts.column("tokens"), self._texts.column("shared")
        self._variant_names, self._variant = self._texts.coded("variant")

    def at(self, area: int) -> "CacheReader":
        """A reader of the latents of another area. It shares with this one what does not depend on the area."""
        other = copy(self)
        other._open_area(area)
        return other

    def _open_area(self, area: int) -> None:
        if area not in self.areas:
            raise UserError(
                f"{self._work}: the cache has latents of the areas {self.areas}, none of {area}; "
                f"run `cache-latents --set 'cache.areas={sorted([*self.areas, area])}'`"
            )
        self.area: int = area
        first = self.areas.index(area) * self.images
        rows = slice(first, first + self.images)
        self._latents = _Places(self._store, "latents", self._written["manifest/latents.parquet"], rows)
        self._height, self._width = self._latents.column("height"), self._latents.column("width")
        patch = self.multiple // self.factor
        self.image_tokens: NDArray[np.int64] = (self._height // patch).astype(np.int64) * (self._width // patch)

    def __reduce__(self) -> tuple[type["CacheReader"], tuple[Path | str, None, int]]:
        return CacheReader, (self._work, None, self.area)

    def image_id(self, index: int) -> str:
        """Id of an image."""
        return str(self._latents.table["image_id"][index].as_py())

    @property
    def image_ids(self) -> pa.ChunkedArray:
        """Ids of all images, in ascending order."""
        return self._latents.table["image_id"]

    def starting_with(self, prefix: str) -> list[int]:
        """Indices of the images whose ids begin so."""
        found: list[int] = pc.indices_nonzero(pc.starts_with(self._latents.table["image_id"], prefix)).to_pylist()
        return found

    @property
    def variant_names(self) -> list[str]:
        """Names of all caption variants, in alphabetical order."""
        return sorted(self._variant_names)

    def grid(self, index: int) -> tuple[int, int]:
        """Rows and columns of an image, in tokens of the transformer."""
        patch = self.multiple // self.factor
        return int(self._height[index]) // patch, int(self._width[index]) // patch

    def variants(self, index: int) -> list[str]:
        """Names of an image's caption variants, in alphabetical order."""
        return [self._variant_names[code] for code in self._variant[self._text_rows(index)]]

    def text_tokens(self, index: int, variant: str | None) -> int:
        """Tokens of a caption, prefix included; None is the empty caption."""
        if variant is None:
            return int(self._shared["empty"]["tokens"])
        return int(self._tokens[self._text_row(index, variant)])

    def latent(self, index: int) -> Tensor:
        """The posterior mean (channels, height, width) of an image, neither shifted nor scaled.

        It is bfloat16, in whatever form it is stored.

        Raises CorruptTensor naming file, row, image id and both sums.
        """
        shape = (self.channels, int(self._height[index]), int(self._width[index]))
        return from_bytes(self._sample(self._latents, index, index), shape, self._latent_dtype)

    def text(self, index: int, variant: str | None) -> Tensor:
        """The embedding (tokens, dim) of a caption, bfloat16, prefix included; None is the empty caption."""
        if variant is None:
            return self.empty
        row = self._text_row(index, variant)
        shape = (int(self._tokens[row] - self._shared_rows[row]), self.text_dim)
        rest = from_bytes(self._sample(self._texts, row, index), shape, self._text_dtype)
        return torch.cat([self._prefix, rest]) if self._shared_rows[row] else rest

    def find(self, captions: Iterable[str]) -> dict[str, tuple[int, str]]:
        """The image and variant of captions, by their text, as far as the cache has them.

        Looks through the sums of all captions. Only for a cache in a folder.
        """
        by_sum = {hashlib.sha256(caption.encode()).hexdigest(): caption for caption in captions}
        files = [f"{self._store.root}/{file}" for file in self._texts.files]
        if not files:
            return {}
        query = (
            "SELECT caption_sha, filename, file_row_number"
            " FROM read_parquet(?, filename = true, file_row_number = true)"
            " WHERE caption_sha IN (SELECT unnest(?))"
        )
        with duckdb.connect() as database:
            rows = database.execute(query, [files, list(by_sum)]).fetchall()
        found: dict[str, tuple[int, str]] = {}
        for caption_sha, file, row in rows:
            if (caption := by_sum[caption_sha]) in found:
                continue
            # A shard may have captions that the manifest has not, for they have changed since.
            for place in np.flatnonzero((self._texts.file == files.index(file)) & (self._texts.row == row)):
                image, variant = self._texts.column("image")[place], self._variant_names[self._variant[place]]
                found[caption] = (int(image), variant)
        return found

    @cached_property
    def empty(self) -> Tensor:
        """The embedding (tokens, dim) of the empty caption."""
        return self._shared_text("empty")

    @cached_property
    def _prefix(self) -> Tensor:
        return self._shared_text("prefix")

    def _shared_text(self, name: str) -> Tensor:
        entry = self._shared[name]
        page = Page(entry["offset"], entry["length"], entry["crc"])
        return from_bytes(self._read(entry["file"], page, name), (-1, self.text_dim))

    def _text_rows(self, index: int) -> slice:
        return slice(int(self._first_text[index]), int(self._first_text[index + 1]))

    def _text_row(self, index: int, variant: str) -> int:
        return int(self._first_text[index]) + self.variants(index).index(variant)

    def _sample(self, places: _Places, row: int, image: int) -> bytearray:
        name = f"row {places.row[row]}, image {self.image_id(image)}"
        return self._read(places.files[places.file[row]], places.page(row), name)

    def _read(self, file: str, page: Page, name: str) -> bytearray:
        name = f"{self._store.root}/{file} {name}"
        try:
            tensor = self._store.read(file, page.offset, page.length)
        except OSError as error:
            raise CorruptTensor(f"{name}: {os_error(error)}, CRC {page.crc:08x} was written") from error
        check_page(tensor, page, name)
        return tensor
