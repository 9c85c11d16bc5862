"""The manifest: where every tensor of the current dataset lies. Its hash is the identity of the cache."""

import hashlib
import json
import mmap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import UserError
from shared.files import atomic_file, atomic_folder, file_sha256
from shared.fingerprint import differences, fingerprint
from shared.sealed import is_sealed, seal
from shared.tensors import Page, description, pages
from train.cache.error import errors, read_columns
from train.cache.store import cache_store

FORMAT = 4
ABOUT = "manifest/manifest.json"


class CacheLayout:
    """Paths below WORK/cache."""

    def __init__(self, work: Path) -> None:
        self.root = work / "cache"
        self.manifest = self.root / "manifest"
        self.rejects = self.root / "rejects.parquet"

    def latents(self, about: dict[str, Any]) -> Path:
        """Folder of the latents of one area, by their description (see `by_area`)."""
        return self.root / "latents" / fingerprint(about)

    def text(self, about: dict[str, Any]) -> Path:
        """Folder of the embeddings with this description: `shared.parquet` and a folder per variant."""
        return self.root / "text" / fingerprint(about)

    def latent_parts(self, latents: dict[str, Any]) -> list[Path]:
        """Shards of the latents of all areas."""
        return [part for one in by_area(latents) for part in sorted(self.latents(one).glob("part-*.parquet"))]

    def text_parts(self, text: dict[str, Any]) -> list[Path]:
        """Shards of the embeddings of all variants."""
        return sorted(self.text(text).glob("*/part-*.parquet"))

    def lists(self, latents: dict[str, Any], text: dict[str, Any]) -> list[Path]:
        """Folders with a work list and its shards: those of the areas, and those of the variants."""
        variants = sorted(path for path in self.text(text).glob("*") if path.is_dir())
        return [*(self.latents(about) for about in by_area(latents)), *variants]


def by_area(latents: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stands in the shards of each area, from the description of all: `area` takes the place of `areas`."""
    common = {key: value for key, value in latents.items() if key != "areas"}
    return [{**common, "area": area} for area in latents["areas"]]


def finalise(work: Path, latents: dict[str, Any], text: dict[str, Any], curated: duckdb.DuckDBPyConnection) -> str:
    """Write WORK/cache/manifest for the pictures and captions that are `curated` now; returns its identity.

    `latents` and `text` describe the encoders, as they stand in their shards. Pictures that lack
    the latent of an area are left out; they stand in rejects.parquet with a reason. So the rows of every area are those
    of the same images in the same order.
    """
    layout = CacheLayout(work)
    curated.register("latent_places", _table(_latent_places(layout, latents), LATENTS))
    curated.register("text_places", _table(_text_places(layout, text), TEXTS))
    areas = len(latents["areas"])
    curated.execute(
        f"""
        CREATE VIEW images AS
        SELECT image_id, row_number() OVER (ORDER BY image_id) - 1 AS image
        FROM latent_places SEMI JOIN curated USING (image_id) GROUP BY image_id HAVING count(*) = {areas}
        """
    )
    tables = {
        "latents": curated.sql(
            "SELECT * FROM latent_places SEMI JOIN images USING (image_id) ORDER BY area, image_id"
        ).to_arrow_table(),
        "text": curated.sql(
            """
            SELECT image::INTEGER AS image, p.* EXCLUDE (image_id, caption_sha)
            FROM text_places p
            JOIN captions USING (image_id, variant, caption_sha)
            JOIN images USING (image_id)
            ORDER BY image, variant
            """
        ).to_arrow_table(),
    }
    about: dict[str, Any] = {
        "format": FORMAT,
        "latents": latents,
        "text": text,
        "images": len(tables["latents"]) // areas,
        "captions": len(tables["text"]),
        "shared": _shared_places(layout, text),
    }
    if found := errors({"latents": layout.latent_parts(latents), "text": layout.text_parts(text)}):
        about["error"] = found
    about["identity"] = identity_of(about, tables)
    with atomic_folder(layout.manifest) as temporary:
        for name, table in tables.items():
            pq.write_table(table, temporary / f"{name}.parquet")
        about["files"] = _digests(layout, latents, text) | {
            f"manifest/{name}.parquet": file_sha256(temporary / f"{name}.parquet") for name in tables
        }
        (temporary / "manifest.json").write_bytes(seal(about))
    return str(about["identity"])


def _digests(layout: CacheLayout, latents: dict[str, Any], text: dict[str, Any]) -> dict[str, str]:
    """sha256 of the files beside the shards, whose bytes no tensor's CRC looks after."""
    lists = [todo for folder in layout.lists(latents, text) for todo in sorted(folder.glob("todo-*.parquet"))]
    found = [layout.rejects] * layout.rejects.exists() + lists
    return {str(path.relative_to(layout.root)): file_sha256(path) for path in found}


# Beside the tensor's own CRC stands `frame`, that of all bytes of its file which are not tensors.
_PLACE = [
    pa.field("file", pa.string()),
    pa.field("row", pa.int32()),
    pa.field("offset", pa.int64()),
    pa.field("length", pa.int64()),
    pa.field("crc", pa.uint32()),
    pa.field("frame", pa.uint32()),
]
LATENTS = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("area", pa.int32()),
        *_PLACE,
        pa.field("channels", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
    ]
)
TEXTS = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("caption_sha", pa.string()),
        pa.field("variant", pa.string()),
        *_PLACE,
        pa.field("tokens", pa.int32()),
        pa.field("shared", pa.int32()),
        pa.field("cut", pa.bool_()),
    ]
)


def _table(parts: Iterator[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(part.select(schema.names).cast(schema) for part in parts)])


def _latent_places(layout: CacheLayout, about: dict[str, Any]) -> Iterator[pa.Table]:
    for one in by_area(about):
        for part in sorted(layout.latents(one).glob("part-*.parquet")):
            columns = read_columns(part, ["image_id", "channels", "height", "width"])
            area = pa.array([one["area"]] * len(columns), pa.int32())
            yield _placed(columns.append_column("area", area), part, layout.root)


def _text_places(layout: CacheLayout, about: dict[str, Any]) -> Iterator[pa.Table]:
    for part in layout.text_parts(about):
        columns = read_columns(part, ["image_id", "caption_sha", "tokens", "shared", "cut"])
        variant = pa.array([part.parent.name] * len(columns))
        yield _placed(columns.append_column("variant", variant), part, layout.root)


def _placed(columns: pa.Table, part: Path, root: Path) -> pa.Table:
    """Columns of a shard with the place of each row's tensor."""
    found = pages(part)
    return (
        columns.append_column("file", pa.array([str(part.relative_to(root))] * len(found)))
        .append_column("row", pa.array(range(len(found)), pa.int32()))
        .append_column("offset", pa.array([page.offset for page in found], pa.int64()))
        .append_column("length", pa.array([page.length for page in found], pa.int64()))
        .append_column("crc", pa.array([page.crc for page in found], pa.uint32()))
        .append_column("frame", pa.array([frame_crc(part, found)] * len(found), pa.uint32()))
    )


def frame_crc(path: Path, places: Sequence[Page]) -> int:
    """CRC of all bytes of a shard beside its tensors: page headers, the other columns, the footer."""
    crc = position = 0
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for place in places:
            crc = zlib.crc32(data[position : place.offset], crc)
            position = place.offset + place.length
        return zlib.crc32(data[position:], crc)


def _shared_places(layout: CacheLayout, about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Where the rows lie that are stored once, `prefix` and `empty`."""
    path = layout.text(about) / "shared.parquet"
    rows = _placed(read_columns(path, ["name", "tokens"]), path, layout.root).to_pylist()
    return {row.pop("name"): row for row in rows}


def identity_of(about: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> str:
    """Hash of all a manifest says, in a form that no library's version has a part in."""
    head = {key: value for key, value in about.items() if key not in ("identity", "files", "seal")}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name, table in sorted(tables.items()):
        for column in table.column_names:
            digest.update(f"\n{name}.{column}\n".encode())
            for chunk in table[column].chunks:
                if pa.types.is_string(chunk.type):
                    digest.update("".join(f"{value}\n" for value in chunk.to_pylist()).encode())
                else:
                    digest.update(chunk.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()


def write_rejects(work: Path, latents: dict[str, Any], curated: duckdb.DuckDBPyConnection) -> pa.Table:
    """Collect which of the curated pictures could not be encoded into WORK/cache/rejects.parquet; returns it.

    A picture stands there once, with the reason of its largest area.
    """
    layout = CacheLayout(work)
    rows = {
        image_id: {"image_id": image_id, "reason": reason, "detail": detail}
        for part in layout.latent_parts(latents)
        for image_id, reason, detail in description(part)["rejects"]
    }
    curated.register("rejected", pa.Table.from_pylist(list(rows.values()), REJECTS))
    query = "SELECT * FROM rejected SEMI JOIN curated USING (image_id) ORDER BY image_id"
    table = curated.sql(query).to_arrow_table().cast(REJECTS)
    with atomic_file(layout.rejects) as temporary:
        pq.write_table(table, temporary)
    return table


REJECTS = pa.schema([pa.field(name, pa.string()) for name in ("image_id", "reason", "detail")])


def read_about(work: Path | str, expected: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """manifest.json of a work directory or its address; its parts `latents` and `text` say how the tensors were made.

    Of those parts, all that `expected` names must be as it says. Raises UserError with the fields that differ, or
    where there is no finished cache, or one that is damaged or of another format.
    """
    store = cache_store(work)
    path = f"{store.root}/{ABOUT}"
    try:
        document = store.read_all(ABOUT)
    except FileNotFoundError:
        raise UserError(f"{work}: there is no finished tensor cache; run `cache-latents --work {work}` first") from None
    about = _parsed(document)
    if about.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path}: format {about['format']}, this version reads {FORMAT}; run `cache-latents` again")
    if not is_sealed(document):
        raise UserError(f"{path}: damaged: not the bytes that were written; run `cache-latents finalize`")
    differing = [
        f"  {part}.{line}"
        for part, fields in (expected or {}).items()
        for line in differences(dict(fields), {key: about[part][key] for key in fields.keys() & about[part].keys()})
    ]
    if differing:
        raise UserError(
            f"{path}: not the cache of this model and these settings; run `cache-latents` again, or give the --model "
            "and the --set that it was made with:\n" + "\n".join(differing)
        )
    return about


def _parsed(document: bytes) -> dict[str, Any]:
    """A JSON object, empty where it is none."""
    try:
        found = json.loads(document)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
