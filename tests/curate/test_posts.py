"""Tables of posts: parsed in chunks, and joined to the pictures they speak of."""

import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import ingest, metadata, posts
from shared.corpus import Corpus
from shared.engine import LocalEngine
from shared.errors import UserError
from shared.stages import Job, rows_of

ROWS = [
    {"file_name": "a.png", "caption": "A frog, green.", "tags": "frog;green"},
    {"file_name": "./sub/b.png", "score": 7},
]
SCHEMA = pa.schema({"file_name": "string", "caption": "string", "tags": "string", "score": "int32"})


@pytest.fixture
def known(tmp_path: Path):
    """What `metadata` says of a source, by location; the arguments are settings of `posts`."""

    def start(source: Path, workers: int = 1, md5: bool = False, **settings: Any) -> dict[str, dict[str, Any]]:
        tables: dict[str, Path] = {}
        chosen = (
            ("ingest", ingest.STAGE, ingest.IngestSettings(md5=md5)),
            ("posts", posts.STAGE, posts.PostsSettings(**settings)),
            ("metadata", metadata.STAGE, metadata.MetadataSettings()),
        )
        for name, stage, values in chosen:
            folder = tmp_path / "tables" / name
            folder.mkdir(parents=True, exist_ok=True)
            job = Job(
                source=str(source),
                settings=values,
                folder=folder,
                tables=dict(tables),
                deciders=(),
                engine=LocalEngine(workers),
            )
            stage.run(job)
            tables[name] = folder
        rows = duckdb.sql(rows_of(tables["metadata"])).to_arrow_table().to_pylist()
        assert len({row["location"] for row in rows}) == len(rows)
        return {row["location"]: row for row in rows}

    return start


@pytest.fixture
def source(tmp_path: Path, make) -> Path:
    root = tmp_path / "source"
    (root / "sub").mkdir(parents=True)
    make.draw(1).save(root / "a.png")
    make.draw(2).save(root / "sub" / "b.png")
    return root


def write_table(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "caption", "tags", "score"])
            writer.writeheader()
            writer.writerows(ROWS)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("place", ["source/metadata", "source/other", "outside"])
def test_tables(suffix, place, source, known, tmp_path):
    table = tmp_path / f"{place}.{suffix}"
    write_table(table)
    found = known(source, **({} if place == "source/metadata" else {"tables": [table]}))
    assert sorted(found) == ["a.png", "sub/b.png"]
    assert found["a.png"]["caption"] == "A frog, green."
    assert [tag["name"] for tag in found["a.png"]["tags"]] == ["frog", "green"]
    assert (found["sub/b.png"]["score"], found["sub/b.png"]["metadata_error"]) == (7, None)


def test_names_are_relative_to_a_table_inside_the_source(source, known):
    table = source / "sub" / "posts.csv"
    table.write_text(f"path,score\nb.png,1\n{source}/a.png,2\ngone.png,3\n")
    found = known(source, tables=[table])
    assert {name: (row["score"], row["error"]) for name, row in found.items()} == {
        "a.png": (2, None),
        "sub/b.png": (1, None),
        "sub/gone.png": (None, "missing_file"),
    }


def test_bad_rows_are_kept_and_the_first_of_two_wins(source, known):
    good = ['{"file": "a.png", "score": 1}', '{"file": "a.png", "score": 2}']
    lines = [*good, "{", "5", '{"score": 1}', '{"file": "gone"}', '{"file": ["x"]}']
    (source / "metadata.jsonl").write_text("\n".join(lines))
    found = known(source)
    places = {f"metadata.jsonl:{sum(len(line) + 1 for line in lines[:n])}" for n in (2, 3, 4, 6)}
    assert {name: row["error"] for name, row in found.items()} == {
        "a.png": None,
        "sub/b.png": None,
        "gone": "missing_file",
        **dict.fromkeys(places, "bad_metadata"),
    }
    assert found["a.png"]["score"] == 1
    assert found["a.png"]["metadata_error"] == "the metadata table has more than one row for this file"


def test_sidecars_go_before_the_table_and_are_completed_by_it(source, known):
    (source / "a.json").write_text('{"score": 1}')
    (source / "a.txt").write_text("from text")
    (source / "metadata.csv").write_text("file,score,tags,caption,rating\na.png,2,from_table,A frog.,odd\n")
    row = known(source)["a.png"]
    assert (row["score"], row["caption"]) == (1, "A frog.")
    assert [tag["name"] for tag in row["tags"]] == ["from", "text"]
    assert row["metadata_error"].startswith("metadata table: rating: ")


DANBOORU = {
    "id": 4711,
    "created_at": "2019-03-05T21:10:00.000-05:00",
    "score": 12,
    "rating": "s",
    "parent_id": 4000,
    "tag_string_general": "1girl smile",
    "tag_string_character": "hatsune_miku",
    "fav_count": 3,
}


@pytest.mark.parametrize("key", ["md5", "md5 of the name", "id", "id of the sidecar", "file"])
def test_posts_of_boorus_find_pictures_in_folders_and_tars(key, tmp_path, known, make):
    root = tmp_path / "source"
    root.mkdir()
    pictures = []
    for seed in (1, 2, 3):
        buffer = io.BytesIO()
        make.draw(seed).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    md5 = hashlib.md5(pictures[0]).hexdigest()
    names = {"md5": "x.png", "md5 of the name": f"{md5}.png", "id": "4711.png"}
    name = names.get(key, "y.png")
    members = {name: pictures[0], "other.png": pictures[1]}
    if key == "id of the sidecar":
        members["y.json"] = b'{"id": 4711}'
    with tarfile.open(root / "0.tar", "w") as tar:
        for member, data in members.items():
            entry = tarfile.TarInfo(f"deep/{member}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    (root / "loose.png").write_bytes(pictures[2])
    post = DANBOORU | {"md5": md5} | ({"file_name": "deep/y.png"} if key == "file" else {})
    others = [DANBOORU | {"id": number, "md5": f"{number:032x}"} for number in range(5)]
    table = tmp_path / "posts.jsonl"
    rows = [{**other, **({"file_name": "0.tar/deep/other.png"} if key == "file" else {})} for other in others[:1]]
    table.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *([] if key == "file" else others[1:]), post]))
    found = known(root, tables=[table], key=key[:4].split()[0].strip(), md5=key == "md5")
    (row,) = [row for place, row in found.items() if f"/{name}@" in place]
    assert (row["post_id"], row["parent_id"], row["rating"], row["score"]) == ("4711", "4000", "sensitive", 12)
    assert [(tag["name"], tag["category"]) for tag in row["tags"]] == [
        ("1girl", "general"),
        ("smile", "general"),
        ("hatsune_miku", "character"),
    ]
    assert row["created_at"].isoformat() == "2019-03-06T02:10:00+00:00"
    assert not [row for row in found.values() if row["error"]]
    assert found["loose.png"]["post_id"] is None


def test_posts_of_e621(tmp_path, source, known):
    md5 = hashlib.md5((source / "a.png").read_bytes()).hexdigest()
    post = {
        "id": 5,
        "file": {"md5": md5.upper(), "ext": "png"},
        "score": {"up": 3, "down": -1, "total": 2},
        "tags": {"general": ["solo"], "species": ["cat"], "artist": ["somebody"]},
        "rating": "q",
    }
    table = tmp_path / "posts.jsonl"
    table.write_text(json.dumps(post))
    row = known(source, tables=[table], md5=True)["a.png"]
    assert (row["post_id"], row["score"], row["rating"]) == ("5", 2, "questionable")
    assert ("somebody", "artist") in [(tag["name"], tag["category"]) for tag in row["tags"]]


LINES = st.lists(
    st.sampled_from([b"", b" ", b'{"file": "a"}', b'{"file": "\xc3\xa9\xc3\xa9"}', b"{", b"[1]", b"x" * 50]),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(LINES, st.integers(1, 60), st.booleans())
def test_lines_are_the_same_however_the_file_is_cut(tmp_path_factory, lines, size, ended):
    path = tmp_path_factory.mktemp("lines") / "posts.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ended else b""))
    length = path.stat().st_size
    cut = [row for start in range(0, length, size) for row in posts._jsonl(path, start, size)]
    assert cut == list(posts._jsonl(path, 0, length + 1))
    assert len(cut) == sum(1 for line in lines if line.strip())


def test_a_table_that_has_not_changed_is_not_parsed_again(source, known, tmp_path, monkeypatch):
    table = source / "metadata.jsonl"
    table.write_text('{"file": "a.png", "score": 1}\n')
    known(source)
    parse = posts._read
    monkeypatch.setattr(posts, "_read", None)
    assert known(source)["a.png"]["score"] == 1
    monkeypatch.setattr(posts, "_read", parse)
    table.write_text('{"file": "a.png", "score": 22}\n')
    assert known(source)["a.png"]["score"] == 22


def test_two_workers_find_the_same(source, known, tmp_path, monkeypatch):
    rows = [{"file": f"{number}.png", "score": number} for number in range(200)]
    pq.write_table(
        pa.Table.from_pylist([*rows, {"file": "a.png", "score": -1}]), source / "metadata.parquet", row_group_size=9
    )
    found = known(source, workers=2)
    assert found["a.png"]["score"] == -1
    assert sum(row["error"] == "missing_file" for row in found.values()) == 200


@pytest.mark.parametrize(
    ("files", "tables", "key", "message"),
    [
        ({}, ["nowhere.csv"], None, "nowhere.csv: no such file"),
        ({"t.xlsx": "x"}, ["t.xlsx"], None, "a metadata table is one of .csv, .jsonl, .parquet"),
        ({"t.parquet": "x"}, ["t.parquet"], None, "cannot read this metadata table"),
        ({"metadata.csv": "x", "metadata.jsonl": "x"}, None, None, r"choose with --set posts.tables=\[PATH\]"),
        ({"t.csv": "picture,score\na.png,1\n"}, ["t.csv"], None, "there are: picture, score"),
        ({"t.csv": "file,score\na.png,1\n"}, ["t.csv"], "md5", "one of md5 is needed"),
    ],
)
def test_user_errors(files, tables, key, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    chosen = tables and [tmp_path / name for name in tables]
    corpus = Corpus(str(tmp_path))

    def cut():
        for table in posts.tables(corpus, posts.PostsSettings(tables=chosen, key=key)):
            posts.cut(corpus, table, key)

    with pytest.raises(UserError, match=message):
        cut()
