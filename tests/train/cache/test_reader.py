"""The reader: one `pread` or request per tensor, from threads, other processes, and more files than may be open."""

import os
import pickle
import random
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from shared.errors import UserError
from shared.tensors import CorruptTensor
from tests.train.cache.test_cache import flip, latent_parts, run
from tests.train.conftest import SETTINGS, SIZES
from train.cache import store
from train.cache.manifest import CacheLayout, read_about
from train.cache.reader import CacheReader
from train.cache.run import expected
from train.cache.text_encoder import TextEncoder


def test_arrays_for_the_plan(cached: Path):
    found = CacheReader(cached)
    ids = [found.image_id(index) for index in range(found.images)]
    assert ids == sorted(pq.read_table(cached / "curated")["image_id"].to_pylist())
    tokens = [found.latent(index).shape[1] // 2 * (found.latent(index).shape[2] // 2) for index in range(found.images)]
    assert found.image_tokens.dtype == np.int64
    assert found.image_tokens.tolist() == tokens


def test_a_pickled_reader_reads_the_same(cached: Path):
    first = CacheReader(cached)
    first.latent(0)
    second = pickle.loads(pickle.dumps(first))
    assert second.identity == first.identity
    assert torch.equal(second.latent(3), first.latent(3))


def open_latents(folder: Path) -> int:
    """How many descriptors this process holds of the parts with latents."""
    links = list(Path("/proc/self/fd").iterdir())
    parts = {str(part.resolve()) for part in latent_parts(folder)}
    return sum(os.path.realpath(link) in parts for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_threads_read_more_files_than_may_be_open(cached: Path, monkeypatch: pytest.MonkeyPatch):
    many = CacheReader(cached)
    expected = [many.latent(index) for index in range(len(SIZES))]
    assert open_latents(cached) == len(latent_parts(cached)) == 3
    monkeypatch.setattr(store, "OPEN_FILES", 1)
    few = CacheReader(cached)
    with ThreadPoolExecutor(8) as pool:
        for index, found in enumerate(pool.map(few.latent, list(range(len(SIZES))) * 40)):
            assert torch.equal(found, expected[index % len(SIZES)])
    assert open_latents(cached) == 3 + 1
    del few, many
    assert open_latents(cached) == 0


def test_a_cache_made_otherwise_is_refused_by_its_fields(
    cached: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    CacheReader(cached, expected(tiny_model, SETTINGS))
    other = SETTINGS.model_copy(update={"prompt_prefix": "Draw: "})
    monkeypatch.setattr("train.cache.run.RESIZE", "bicubic")
    with pytest.raises(UserError, match="run `cache-latents` again") as raised:
        CacheReader(cached, expected(tiny_model, other))
    _, *lines = str(raised.value).splitlines()
    assert lines[0] == '  latents.resize: expected "bicubic", found "lanczos"'
    assert lines[1].startswith('  text.prompt_prefix: expected "Draw: ", found "You are')
    assert len(lines) == 2


def test_captions_without_rows_of_their_own(curated: Path, tiny_model: Path):
    shared = TextEncoder(tiny_model, SETTINGS.prompt_prefix, 256, torch.device("cpu")).shared
    run(curated, tiny_model, max_tokens=len(shared))
    found = CacheReader(curated)
    index = next(index for index in range(found.images) if found.variants(index))
    assert found.text(index, "tags").shape == (len(shared), found.text_dim)


def test_a_cache_without_captions(curated: Path, tiny_model: Path):
    part = next((curated / "curated").iterdir())
    rows = pq.read_table(part)
    none = pa.array([[]] * len(rows), rows.schema.field("captions").type)
    pq.write_table(rows.set_column(2, "captions", none), part)
    run(curated, tiny_model)
    found = CacheReader(curated)
    assert [found.variants(index) for index in range(found.images)] == [[]] * len(SIZES)
    assert found.text(0, None).shape == (1, found.text_dim)


def test_flipped_prefix_is_found_and_named(cached: Path):
    place = read_about(cached)["shared"]["prefix"]
    path = CacheLayout(cached).root / place["file"]
    flip(path, place["offset"] + 7)
    found = CacheReader(cached)
    index = next(index for index in range(found.images) if found.variants(index))
    with pytest.raises(CorruptTensor, match=r"shared\.parquet prefix.*CRC"):
        found.text(index, "tags")


def test_an_object_store(cached: Path, s3: str, upload: Callable[[Path, str], None]):
    upload(cached / "cache", f"{s3}/job/cache")
    local, remote = CacheReader(cached), pickle.loads(pickle.dumps(CacheReader(f"{s3}/job")))
    assert (remote.identity, remote.images) == (local.identity, local.images)
    with ThreadPoolExecutor(8) as pool:
        for index, found in enumerate(pool.map(remote.latent, list(range(local.images)) * 3)):
            assert torch.equal(found, local.latent(index % local.images))
    for index in range(local.images):
        for variant in (None, *local.variants(index)):
            assert torch.equal(remote.text(index, variant), local.text(index, variant))
    with pytest.raises(UserError, match="no finished tensor cache"):
        CacheReader(f"{s3}/nothing")


@pytest.fixture
def in_memory(cached: Path) -> Iterator[str]:
    """The cache in fsspec's file system of this process's memory."""
    files = fsspec.filesystem("memory")
    files.put(str(cached / "cache"), "/job/cache", recursive=True)
    yield "memory://job"
    files.rm("/job", recursive=True)


def test_damage_in_an_object_store_is_named(cached: Path, in_memory: str):
    files = fsspec.filesystem("memory")
    found = CacheReader(in_memory)
    place = pq.read_table(CacheLayout(cached).manifest / "latents.parquet").to_pylist()[5]
    path = f"/job/cache/{place['file']}"
    whole = files.cat_file(path)
    named = f"{in_memory}/cache/{place['file']} row {place['row']}, image {place['image_id']}: "

    def told() -> str:
        with pytest.raises(CorruptTensor) as raised:
            found.latent(5)
        assert str(raised.value).startswith(named)
        assert f"{place['crc']:08x} was written" in str(raised.value)
        return str(raised.value)

    at = place["offset"] + 3
    files.pipe_file(path, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert re.search(r"CRC [0-9a-f]{8} where ", told())
    files.pipe_file(path, whole[:at])
    assert f"3 of {place['length']} bytes" in told()
    files.rm(path)
    assert "FileNotFoundError" in told()


def test_requests_run_side_by_side(cached: Path, in_memory: str, monkeypatch: pytest.MonkeyPatch):
    reader, cat = CacheReader(in_memory), MemoryFileSystem.cat_file
    four = threading.Barrier(4)

    def answer_four_at_a_time(*arguments: object, **part: int) -> bytes:
        four.wait(timeout=60)
        return cat(*arguments, **part)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", answer_four_at_a_time)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(reader.latent, range(8)))
    assert all(torch.equal(tensor, CacheReader(cached).latent(index)) for index, tensor in enumerate(found))


@pytest.mark.parametrize("name", ["latents.parquet", "text.parquet", "manifest.json"])
def test_a_damaged_manifest_is_refused(cached: Path, name: str):
    path = CacheLayout(cached).manifest / name
    rng = random.Random(name)
    for _ in range(20):
        offset = rng.randrange(path.stat().st_size)
        flip(path, offset)
        with pytest.raises(UserError, match=re.escape(str(path))):
            CacheReader(cached)
        flip(path, offset)
    CacheReader(cached)


def test_captions_are_found_by_their_text(cached: Path, tiny_model: Path):
    reader = CacheReader(cached)
    same = "1girl, solo, smile"
    found = reader.find([same, "A drawing of number 5.", "nobody's"])
    assert found.keys() == {same, "A drawing of number 5."}
    captions = {
        row["image_id"]: {caption["variant"]: caption["text"] for caption in row["captions"]}
        for row in pq.read_table(cached / "curated").to_pylist()
    }
    for text, (index, variant) in found.items():
        assert captions[reader.image_id(index)][variant] == text
    assert reader.find([]) == {}
