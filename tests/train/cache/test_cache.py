"""The cache as a whole: readable by everyone, the same bytes however it was made, and never wrong in silence."""

import hashlib
from pathlib import Path

import datasets
import duckdb
import pyarrow.parquet as pq
import pytest
import torch

from shared.corpus import Corpus
from shared.errors import UserError
from shared.tensors import CorruptTensor
from tests.train.conftest import SETTINGS, SIZES, add_pictures
from train.cache import latents
from train.cache.compute import default_device
from train.cache.manifest import CacheLayout, read_about
from train.cache.reader import CacheReader
from train.cache.run import cache
from train.cache.text_encoder import TextEncoder
from train.cache.verify import verify


def files(work: Path) -> dict[str, str]:
    """Every file of a cache by the hash of its bytes."""
    root = work / "cache"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def run(work: Path, model: Path, **changes: object) -> None:
    cache(work, Corpus(str(work.parent / "pictures")), model, SETTINGS.model_copy(update=changes))


def latent_parts(work: Path) -> list[Path]:
    return sorted((work / "cache").glob("latents/*/part-*.parquet"))


def test_pyarrow_duckdb_datasets_and_pread_give_the_same_bytes(cached: Path, tmp_path: Path):
    parts = latent_parts(cached)
    assert len(parts) == 3
    by_pyarrow = {
        row["image_id"]: row["latent"]
        for part in parts
        for row in pq.read_table(part, page_checksum_verification=True).to_pylist()
    }
    by_duckdb = dict(duckdb.sql(f"SELECT image_id, latent FROM '{parts[0].parent}/part-*.parquet'").fetchall())
    loaded = datasets.load_dataset(
        "parquet", data_files=[str(part) for part in parts], split="train", cache_dir=str(tmp_path / "hf")
    )
    by_datasets = {row["image_id"]: row["latent"] for row in loaded}
    reader = CacheReader(cached)
    by_pread = {reader.image_id(i): reader.latent(i).view(torch.int16).numpy().tobytes() for i in range(reader.images)}
    assert len(by_pread) == len(SIZES)
    assert by_pyarrow == by_duckdb == by_datasets == by_pread


def test_every_picture_has_its_own_resolution(cached: Path):
    rows = [row for part in latent_parts(cached) for row in pq.read_table(part).to_pylist()]
    assert len({(row["height"], row["width"]) for row in rows}) > 4
    for row in rows:
        width, height = row["original_size"]
        assert row["width"] * 8 <= width
        assert row["height"] * 8 <= height
        assert row["width"] % 2 == row["height"] % 2 == 0


def test_text_is_read_with_its_prefix(cached: Path, tiny_model: Path):
    encoder = TextEncoder(tiny_model, SETTINGS.prompt_prefix, SETTINGS.max_tokens, default_device())
    reader = CacheReader(cached)
    captions = {
        (row["image_id"], caption["variant"]): caption["text"]
        for row in pq.read_table(cached / "curated").to_pylist()
        for caption in row["captions"]
    }
    seen = set()
    for index in range(reader.images):
        for variant in reader.variants(index):
            key = (reader.image_id(index), variant)
            expected = encoder.encode([captions[key]])[0]
            found = reader.text(index, variant)
            assert found.shape == expected.shape == (reader.text_tokens(index, variant), reader.text_dim)
            assert (found.float() - expected.float()).abs().max() <= 2**-7 * expected.abs().max()
            seen.add(key)
    assert seen == captions.keys()
    assert reader.text(0, None).shape[0] == reader.text_tokens(0, None) == 1


def test_second_run_does_nothing(cached: Path, tiny_model: Path):
    before = {path: path.stat().st_mtime_ns for path in (cached / "cache").rglob("part-*")}
    identity = read_about(cached)["identity"]
    run(cached, tiny_model)
    assert before == {path: path.stat().st_mtime_ns for path in (cached / "cache").rglob("part-*")}
    assert read_about(cached)["identity"] == identity


def test_new_pictures_become_new_shards(cached: Path, tiny_model: Path):
    before = {path: path.stat().st_mtime_ns for path in (cached / "cache").rglob("part-*")}
    identity = read_about(cached)["identity"]
    add_pictures(cached, [(64, 80), (48, 48)], first=len(SIZES))
    run(cached, tiny_model)
    assert before.items() < {path: path.stat().st_mtime_ns for path in (cached / "cache").rglob("part-*")}.items()
    assert CacheReader(cached).images == len(SIZES) + 2
    assert read_about(cached)["identity"] != identity


def test_removed_pictures_leave_the_manifest(cached: Path, tiny_model: Path):
    part = next((cached / "curated").iterdir())
    rows = pq.read_table(part)
    pq.write_table(rows.slice(2), part)
    run(cached, tiny_model)
    assert CacheReader(cached).images == len(SIZES) - 2
    assert not verify(cached)


@pytest.mark.parametrize("change", [{"prompt_prefix": "Draw: "}, {"max_tokens": 64}, {"areas": (48,)}])
def test_other_settings_go_to_another_folder(cached: Path, tiny_model: Path, change: dict[str, object]):
    before = files(cached)
    run(cached, tiny_model, **change)
    after = files(cached)
    kept = {name: digest for name, digest in before.items() if name.startswith(("latents/", "text/"))}
    assert kept.items() < after.items(), "an old cache is neither reused nor deleted"
    assert len(list((cached / "cache" / ("latents" if "areas" in change else "text")).iterdir())) == 2


def test_what_cannot_be_encoded_is_a_row_with_a_reason(curated: Path, tiny_model: Path):
    pictures = curated.parent / "pictures"
    (pictures / "001.png").unlink()
    (pictures / "002.png").write_bytes((pictures / "003.png").read_bytes())
    add_pictures(curated, [(12, 90)], first=50)
    run(curated, tiny_model)
    reasons = sorted(pq.read_table(CacheLayout(curated).rejects)["reason"].to_pylist())
    assert reasons == ["changed", "too_small", "unreadable"]
    assert CacheReader(curated).images == len(SIZES) - 2


def flip(path: Path, offset: int, bit: int = 4) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= bit
    path.write_bytes(data)


def test_flipped_bits_are_found_and_named(cached: Path):
    layout = CacheLayout(cached)
    place = pq.read_table(layout.manifest / "latents.parquet").to_pylist()[5]
    flip(layout.root / place["file"], place["offset"] + place["length"] // 2)
    problems = verify(cached)
    assert len(problems) == 1
    for part in (place["file"], f"row {place['row']}", place["image_id"], f"{place['crc']:08x}"):
        assert part in problems[0]
    with pytest.raises(CorruptTensor, match=place["image_id"]):
        CacheReader(cached).latent(5)


def test_missing_file_is_found(cached: Path):
    latent_parts(cached)[1].unlink()
    assert any("No such file" in problem for problem in verify(cached))


def test_no_cache_is_an_error_with_a_way_out(curated: Path):
    with pytest.raises(UserError, match="run `cache-latents"):
        CacheReader(curated)
    with pytest.raises(UserError, match="curate run"):
        cache(curated.parent, Corpus(str(curated)), curated, SETTINGS)


def test_rejected_pictures_do_not_hide_an_encoder_that_fails(
    curated: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    nothing = torch.full((2, 16, 4, 4), float("nan"))
    monkeypatch.setattr(latents.ImageEncoder, "_compute", lambda _, pixels: nothing[: len(pixels)])
    with pytest.raises(RuntimeError, match="not finite"):
        run(curated, tiny_model)
