from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.stages import DECISIONS, connect, rows_of


def table(folder: Path, *parts: pa.Table) -> Path:
    folder.mkdir(parents=True)
    for number, part in enumerate(parts):
        pq.write_table(part, folder / f"part-{number:05}.parquet")
    return folder


def decisions(**keep: bool) -> pa.Table:
    rows = [{"image_id": image_id, "keep": kept} for image_id, kept in keep.items()]
    return pa.Table.from_pylist(rows, DECISIONS)


@pytest.mark.parametrize("name", ["work", "it's", "run [1]", "a*b?c", "seed=1"])
def test_tables_are_views_wherever_they_lie(tmp_path: Path, name: str) -> None:
    folder = table(tmp_path / name / "ingest", pa.table({"image_id": ["a"]}), pa.table({"image_id": ["b"]}))
    table(tmp_path / "run 1" / "ingest", pa.table({"image_id": ["of the glob pattern"]}))
    found = connect({"ingest": folder}, (), tmp_path).sql("SELECT * FROM ingest ORDER BY ALL")
    assert found.fetchall() == [("a",), ("b",)]


def test_survivors_are_what_every_decider_keeps(tmp_path: Path) -> None:
    first = table(tmp_path / "exact", decisions(a=True, b=True, c=False, d=True))
    second = table(tmp_path / "near", decisions(a=True, b=False), decisions(d=True))
    tables = {"exact": first, "near": second}
    assert connect(tables, ("exact",), tmp_path).sql("SELECT * FROM survivors ORDER BY 1").fetchall() == [
        ("a",),
        ("b",),
        ("d",),
    ]
    assert connect(tables, ("exact", "near"), tmp_path).sql("SELECT * FROM survivors ORDER BY 1").fetchall() == [
        ("a",),
        ("d",),
    ]


def test_survivors_of_a_few_pictures(tmp_path: Path) -> None:
    tables = {
        "exact": table(tmp_path / "exact", decisions(a=True, b=False, c=True, d=True)),
        "near": table(tmp_path / "near", decisions(a=True, c=False, d=True)),
    }
    with connect(tables, ("exact", "near"), tmp_path, "image_id >= 'b'") as connection:
        assert connection.sql("FROM survivors").fetchall() == [("d",)]
        plan = connection.sql("EXPLAIN FROM survivors").fetchall()[0][1]
    assert plan.count("'b'") >= 3, "of no decider all decisions are read"


def test_rows_of_items_that_left_are_hidden(tmp_path: Path) -> None:
    folder = table(tmp_path / "run [1]", pa.table({"location": ["a", "b"], "size": [1, 1], "x": [7, 8]}))
    pq.write_table(pa.table({"location": ["b", "a"], "size": [1, 2]}), folder / "live.parquet")
    assert connect({"ingest": folder}, (), tmp_path).sql("SELECT * FROM ingest").fetchall() == [("b", 1, 8)]
    assert "SEMI JOIN" in rows_of(folder)
