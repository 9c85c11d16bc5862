import io
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from curate.fetch.tars import (
    Failure,
    Picture,
    Spool,
    extension,
    fits_json,
    read_failures,
    read_pictures,
    to_json,
    write_tar,
)
from curate.sources.tar import index

picture = st.builds(Picture, st.binary(max_size=600), st.builds(to_json, st.dictionaries(st.text(), st.integers())))
failure = st.builds(
    Failure, st.just("http://a"), st.sampled_from(["no_url", "no_image"]), st.just("why"), st.booleans()
)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(picture | failure, max_size=6))
def test_each_row_is_in_the_tar_or_in_the_table(rows, tmp_path_factory):
    tar = tmp_path_factory.mktemp("tars") / "tar-00000-00000.tar"
    assert write_tar(tar, iter(rows)) == len(rows)
    found = dict(read_pictures(tar)) | read_failures(tar)
    assert found == {number: getattr(row, "data", row) for number, row in enumerate(rows)}
    assert index(tar).problem is None
    before = tar.read_bytes()
    write_tar(tar, rows)
    assert tar.read_bytes() == before


def test_webdataset_reads_the_tars(tmp_path, make):
    write_tar(tmp_path / "a.tar", [Picture(make.png(n), to_json({"score": n})) for n in range(3)])
    with (tmp_path / "a.tar").open("rb") as file:
        found = list(group_by_keys(tar_file_expander([{"url": "a.tar", "stream": file}])))
    assert [(one["png"], json.loads(one["json"])) for one in found] == [(make.png(n), {"score": n}) for n in range(3)]


def test_an_error_leaves_what_was_there(tmp_path):
    tar = tmp_path / "a.tar"
    write_tar(tar, [Picture(b"1", "{}")])

    def rows():
        yield Picture(b"2", "{}")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_tar(tar, rows())
    assert list(read_pictures(tar)) == [(0, b"1")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "a.tar"]


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "webp", "bmp", "avif"])
def test_extensions(kind):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, {"jpg": "jpeg"}.get(kind, kind))
    assert extension(file.getvalue()) == kind


def test_a_spool_keeps_what_it_was_given(tmp_path):
    with Spool(tmp_path) as spool:
        for number in range(5):
            spool.add(number, bytes([number]) * number)
            assert spool.read(number // 2) == bytes([number // 2]) * (number // 2)
        assert 4 in spool
        assert 5 not in spool
        assert not list(tmp_path.iterdir())


def test_what_fits_into_json():
    fits = [pa.string(), pa.list_(pa.string()), pa.struct({"a": pa.int8()}), pa.dictionary(pa.int8(), pa.string())]
    assert all(map(fits_json, fits))
    bytes_within = [pa.binary(), pa.large_binary(), pa.binary(4), pa.list_(pa.struct({"a": pa.binary()}))]
    assert not any(map(fits_json, bytes_within))
