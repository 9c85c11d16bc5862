from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine import LocalEngine
from shared.files import atomic_file
from shared.stages import rows_of
from shared.worklist import Shard, WorkList, process

KEYS = ("location", "size")


def items(*keys: tuple[str, int], note: str = "") -> pa.Table:
    return pa.table(
        {
            "location": pa.array([location for location, _ in keys], pa.string()),
            "note": pa.array([f"{note}{i}" for i in range(len(keys))], pa.string()),
            "size": pa.array([size for _, size in keys], pa.int64()),
        }
    )


def listed(work: WorkList) -> list[tuple[str, int]]:
    rows = [row for shard in work.shards() for row in shard.items().to_pylist()]
    return [(row["location"], row["size"]) for row in rows]


key = st.tuples(st.sampled_from("abc'é"), st.integers(0, 3))


@settings(max_examples=15, deadline=None)
@given(calls=st.lists(st.lists(key, max_size=12), max_size=5), shard_rows=st.integers(1, 5))
def test_each_key_is_listed_once(
    tmp_path_factory: pytest.TempPathFactory, calls: list[list[tuple[str, int]]], shard_rows: int
) -> None:
    work = WorkList(tmp_path_factory.mktemp("work"), KEYS, shard_rows)
    expected: dict[tuple[str, int], None] = {}
    before: list[Shard] = []
    for call in calls:
        new = [one for one in dict.fromkeys(call) if one not in expected]
        assert work.extend(items(*call)) == len(new)
        expected |= dict.fromkeys(new)
        shards = work.shards()
        assert shards[: len(before)] == before  # what was cut stays cut
        assert all(shard.rows == len(shard.items()) <= shard_rows for shard in shards)
        assert len({shard.part for shard in shards}) == len(shards)
        assert [shard.part for shard in shards] == sorted(shard.part for shard in shards)
        before = shards
    assert listed(work) == list(expected)
    if calls:
        assert work.extend(items(*calls[-1])) == 0


def test_the_first_of_equal_items_counts(tmp_path: Path) -> None:
    work = WorkList(tmp_path, KEYS, 10)
    assert work.extend(items(("a", 1), ("b", 1), ("a", 1), ("a", 2))) == 3
    work.extend(items(("a", 1), ("c", 1), note="later "))
    rows = [row for shard in work.shards() for row in shard.items().to_pylist()]
    assert [(row["location"], row["size"], row["note"]) for row in rows] == [
        ("a", 1, "0"),
        ("b", 1, "1"),
        ("a", 2, "3"),
        ("c", 1, "later 1"),
    ]


def test_the_list_is_only_appended_to(tmp_path: Path) -> None:
    work = WorkList(tmp_path / "odd [1] *?'", KEYS, 2)
    work.extend(items(("a", 1), ("b", 1), ("c", 1)))
    first = (work.folder / "todo-00000.parquet").read_bytes()
    work.extend(items(("c", 1), ("d", 1)))
    work.extend(items())
    assert sorted(path.name for path in work.folder.iterdir()) == ["todo-00000.parquet", "todo-00001.parquet"]
    assert (work.folder / "todo-00000.parquet").read_bytes() == first
    assert listed(work) == [("a", 1), ("b", 1), ("c", 1), ("d", 1)]
    assert [shard.part.name for shard in work.shards()] == [
        "part-00000-00000.parquet",
        "part-00000-00001.parquet",
        "part-00001-00000.parquet",
    ]


def copy(shard: Shard) -> None:
    with atomic_file(shard.part) as temporary:
        pq.write_table(shard.items(), temporary)


def test_process_does_what_is_missing(tmp_path: Path) -> None:
    work = WorkList(tmp_path, KEYS, 2)
    work.extend(items(("a", 1), ("b", 1), ("c", 1)))
    work.extend(items(("d", 1)))
    finished = work.shards()[1].part
    finished.write_text("untouched")
    process(work.shards(), copy, LocalEngine(1), "copy", "files")
    assert finished.read_text() == "untouched"
    finished.unlink()
    process(work.shards(), copy, LocalEngine(1), "copy", "files")
    assert [pq.read_table(shard.part)["location"].to_pylist() for shard in work.shards()] == [["a", "b"], ["c"], ["d"]]


def test_process_goes_in_order_and_keeps_what_was_finished(tmp_path: Path) -> None:
    work = WorkList(tmp_path, KEYS, 1)
    work.extend(items(("a", 1), ("b", 1), ("c", 1)))
    seen = []

    def until_b(shard: Shard) -> None:
        seen.append(shard.items()["location"][0].as_py())
        if seen[-1] == "b":
            raise OSError("disk full")
        copy(shard)

    with pytest.raises(OSError, match="disk full"):
        process(work.shards(), until_b, LocalEngine(1), "copy", "files")
    assert seen == ["a", "b"]
    assert [shard.part.exists() for shard in work.shards()] == [True, False, False]
    seen.clear()
    process(work.shards(), lambda shard: seen.append(shard.offset) or copy(shard), LocalEngine(1), "copy", "files")
    process(work.shards(), seen.append, LocalEngine(1), "copy", "files")
    assert seen == [1, 2]


def test_items_that_left_are_hidden_and_come_back(tmp_path: Path) -> None:
    work = WorkList(tmp_path, KEYS, 2)
    everything, fewer = items(("a", 1), ("b", 1), ("c", 1)), items(("c", 1), ("a", 1))
    work.extend(everything)
    process(work.shards(), copy, LocalEngine(1), "copy", "files")

    def seen() -> list[str]:
        return [row[0] for row in duckdb.sql(f"SELECT location FROM ({rows_of(tmp_path)}) ORDER BY 1").fetchall()]

    assert seen() == ["a", "b", "c"]
    digest = work.declare(everything)
    assert work.declare(fewer) != digest
    assert seen() == ["a", "c"]
    stamp = (tmp_path / "live.parquet").stat().st_mtime_ns
    work.declare(fewer)
    assert (tmp_path / "live.parquet").stat().st_mtime_ns == stamp
    assert work.declare(everything) == digest
    assert seen() == ["a", "b", "c"]
