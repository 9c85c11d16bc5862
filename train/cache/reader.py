"""Reading the cache: any tensor of any picture with one `pread`, its CRC always checked."""

import os
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.tensors import Page, read_page
from train.cache.bfloat16 import from_bytes
from train.cache.manifest import CacheLayout, read_about


class _Places:
    """Where tensors lie: a manifest table as arrays, without a Python object per row."""

    def __init__(self, path: Path) -> None:
        table = pq.read_table(path)
        files = table["file"].combine_chunks().dictionary_encode()
        if isinstance(files, pa.ChunkedArray):
            files = files.combine_chunks()
        self.table = table.drop_columns(["file"])
        self.files: list[str] = files.dictionary.to_pylist()
        self.file = files.indices.to_numpy()
        self.row, self.offset, self.length, self.crc = (
            self.column(name) for name in ("row", "offset", "length", "crc")
        )

    def column(self, name: str) -> NDArray[Any]:
        """A numeric column."""
        values: NDArray[Any] = self.table[name].to_numpy()
        return values

    def page(self, index: int) -> Page:
        """The place of a row's tensor within its file."""
        return Page(int(self.offset[index]), int(self.length[index]), int(self.crc[index]))


class CacheReader:
    """The finished cache of a work directory. Images have indices 0 .. images - 1, in the order of their ids.

    Raises UserError where there is no finished cache.
    """

    def __init__(self, work: Path) -> None:
        self._root = CacheLayout(work).root
        about = read_about(work)
        self.identity: str = about["identity"]
        self.text_settings: dict[str, Any] = about["text"]
        self._shared = about["shared"]
        latents = about["latents"]
        self.area: int = latents["area"]
        self.factor: int = latents["factor"]
        self.multiple: int = latents["multiple"]
        self.channels: int = latents["channels"]
        self.scaling_factor: float = latents["scaling_factor"]
        self.shift_factor: float = latents["shift_factor"]
        self.text_dim: int = about["text"]["dim"]
        self._latents = _Places(CacheLayout(work).manifest / "latents.parquet")
        self._texts = _Places(CacheLayout(work).manifest / "text.parquet")
        self.images = len(self._latents.file)
        self._height, self._width = self._latents.column("height"), self._latents.column("width")
        patch = self.multiple // self.factor
        self.image_tokens: NDArray[np.int64] = (self._height // patch).astype(np.int64) * (self._width // patch)
        # Texts are sorted by image: those of image i are rows _first_text[i] to _first_text[i + 1].
        self._first_text = np.searchsorted(self._texts.column("image"), np.arange(self.images + 1))
        self._tokens, self._shared_rows = self._texts.column("tokens"), self._texts.column("shared")
        variants = self._texts.table["variant"].combine_chunks().dictionary_encode()
        if isinstance(variants, pa.ChunkedArray):
            variants = variants.combine_chunks()
        self._variant_names: list[str] = variants.dictionary.to_pylist()
        self._variant = variants.indices.to_numpy()
        self._handles: dict[str, int] = {}
        self._lock = threading.Lock()

    def image_id(self, index: int) -> str:
        """Id of an image."""
        return str(self._latents.table["image_id"][index].as_py())

    def variants(self, index: int) -> list[str]:
        """Names of an image's caption variants, in alphabetical order."""
        return [self._variant_names[code] for code in self._variant[self._text_rows(index)]]

    def text_tokens(self, index: int, variant: str | None) -> int:
        """Tokens of a caption, prefix included; None is the empty caption."""
        if variant is None:
            return int(self._shared["empty"]["tokens"])
        return int(self._tokens[self._text_row(index, variant)])

    def latent(self, index: int) -> Tensor:
        """The posterior mean (channels, height, width) of an image, bfloat16, neither shifted nor scaled.

        Raises CorruptTensor naming file, row, image id and both sums.
        """
        shape = (self.channels, int(self._height[index]), int(self._width[index]))
        return from_bytes(self._read(self._latents, index, index), shape)

    def text(self, index: int, variant: str | None) -> Tensor:
        """The embedding (tokens, dim) of a caption, bfloat16, prefix included; None is the empty caption."""
        if variant is None:
            return self.empty
        row = self._text_row(index, variant)
        rest = from_bytes(self._read(self._texts, row, index), (-1, self.text_dim))
        return torch.cat([self._prefix, rest]) if self._shared_rows[row] else rest

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
        return from_bytes(read_page(self._handle(entry["file"]), page, name), (-1, self.text_dim))

    def _text_rows(self, index: int) -> slice:
        return slice(int(self._first_text[index]), int(self._first_text[index + 1]))

    def _text_row(self, index: int, variant: str) -> int:
        return int(self._first_text[index]) + self.variants(index).index(variant)

    def _read(self, places: _Places, row: int, image: int) -> bytes:
        file = places.files[places.file[row]]
        name = f"{self._root / file} row {places.row[row]}, image {self.image_id(image)}"
        return read_page(self._handle(file), places.page(row), name)

    def _handle(self, file: str) -> int:
        """An open file, kept open: a cache has far fewer files than samples."""
        with self._lock:
            if file not in self._handles:
                self._handles[file] = os.open(self._root / file, os.O_RDONLY)
            return self._handles[file]
