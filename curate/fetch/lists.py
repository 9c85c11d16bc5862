"""Lists of URLs: CSV, JSON lines, Parquet, or text with one URL per line. They are read as a stream, row by row.

A row of which nothing can be fetched stays in the list, with a reason.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq

from curate.fetch.settings import FetchSettings
from curate.fetch.tars import fits_json, to_json
from curate.sources.metadata import clean
from shared.errors import UserError
from shared.progress import console

BATCH_ROWS = 8192

ITEMS = pa.schema(
    [
        pa.field("url", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""`url` is the name of the row itself where it holds none; `metadata` is a JSON object; `error` is a reason."""

Row = dict[str, Any]


def read_list(path: Path, settings: FetchSettings) -> Iterator[pa.RecordBatch]:
    """The rows of a list, as ITEMS.

    Raises UserError (also while it is read) where the file cannot be read, lacks a column, or holds no URL at all.
    """
    batch: list[Row] = []
    found = False
    try:
        for number, row in _READERS[path.suffix](path, settings):
            item = _item(f"{path.name}, {number}", row, settings)
            found = found or item["error"] is None
            batch.append(item)
            if len(batch) == BATCH_ROWS:
                yield pa.RecordBatch.from_pylist(batch, ITEMS)
                batch = []
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot read this list of URLs: {error}") from None
    if not found:
        first = batch[0]["detail"] if batch else "it has no rows"
        raise UserError(f"{path}: no URLs in {settings.url!r}: {first}; name the column with --set fetch.url=NAME")
    yield pa.RecordBatch.from_pylist(batch, ITEMS)


def ascii_url(url: str) -> str:
    """A URL as it is sent: what is not ASCII is encoded. Raises ValueError for what is no address on the web."""
    parts = _split(url)
    path, query = (quote(part, safe="/%:=&?~#+!$,;'@()*[]|") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:  # urllib would open file:///etc/passwd as well.
        raise ValueError("not an http or https address")
    return parts if parts.netloc.isascii() else parts._replace(netloc=parts.netloc.encode("idna").decode())


def _item(name: str, row: Row | str, settings: FetchSettings) -> Row:
    """A row as one of ITEMS; a row that is text says what is wrong with it."""
    if isinstance(row, str):
        return {"url": name, "metadata": "{}", "error": "bad_row", "detail": row}
    values = dict(row)
    url = values.pop(settings.url, None)
    if settings.caption in values:
        values["caption"] = values.pop(settings.caption)
    if settings.columns is not None:
        values = {key: value for key, value in values.items() if key in (*settings.columns, "caption")}
    if not isinstance(url, str) or not clean(url):
        return {"url": name, "metadata": "{}", "error": "no_url", "detail": f"{settings.url} is {url!r:.80}"}
    url = clean(url)
    item = {"url": url, "metadata": to_json({"url": url} | values), "error": None, "detail": None}
    try:
        _split(url)
    except ValueError as error:
        item |= {"error": "not_a_url", "detail": str(error)}
    return item


def _check(path: Path, settings: FetchSettings, columns: list[str]) -> None:
    for column in (settings.url, settings.caption, *(settings.columns or ())):
        if column is not None and column not in columns:
            raise UserError(
                f"{path}: no column {column!r}, there are: {', '.join(columns)}; "
                "name them with --set fetch.url=NAME, fetch.caption=NAME and fetch.columns=[NAME, ...]"
            )


def _csv(path: Path, settings: FetchSettings) -> Iterator[tuple[str, Row | str]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        _check(path, settings, header)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield f"line {reader.line_num}", str(error)
                continue
            if cells is None:
                return
            if len(cells) > len(header):
                yield f"line {reader.line_num}", f"{len(cells)} cells, but {len(header)} columns"
            elif cells:
                yield f"line {reader.line_num}", dict(zip(header, cells, strict=False))


def _jsonl(path: Path, _: FetchSettings) -> Iterator[tuple[str, Row | str]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = f"not JSON: {error}"
            yield f"line {number}", row if isinstance(row, dict | str) else "not a JSON object"


def _parquet(path: Path, settings: FetchSettings) -> Iterator[tuple[str, Row | str]]:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        _check(path, settings, schema.names)
        columns = [field.name for field in schema if fits_json(field.type)]
        if left := [name for name in schema.names if name not in columns]:
            console.print(f"{path.name}: left out, for they hold bytes: {', '.join(left)}", markup=False)
        number = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


def _txt(path: Path, settings: FetchSettings) -> Iterator[tuple[str, Row | str]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", {settings.url: line}


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet, ".txt": _txt}
