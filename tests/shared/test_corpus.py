"""Pictures are read from where they lie: folders, tars, object stores."""

import io
import pickle
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.corpus import Corpus, file_of, member


def write_tar(path: Path, members: dict[str, bytes]) -> dict[str, str]:
    """Write a tar with the standard library; returns the location of each member, relative to the tar's folder."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return {entry.name: member(path.name, entry.name, entry.offset_data, entry.size) for entry in tar}


MEMBERS = {"a.png": b"first", "deep/b@1+2.jpg": bytes(range(256)) * 10, "empty.webp": b"", "n\u00e9.png": b"x"}


def test_files_and_members(tmp_path: Path) -> None:
    places = write_tar(tmp_path / "0 [x].tar", MEMBERS)
    (tmp_path / "frog.png").write_bytes(b"frog")
    corpus = pickle.loads(pickle.dumps(Corpus(str(tmp_path))))
    assert corpus.exists()
    assert corpus.read("frog.png") == b"frog"
    assert {name: corpus.read(place) for name, place in places.items()} == MEMBERS
    assert {file_of(place) for place in places.values()} == {"0 [x].tar"}
    with corpus.on_disk("frog.png") as path:
        assert path == tmp_path / "frog.png"


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    place = write_tar(tmp_path / "a.tar", {"a.png": bytes(5000)})["a.png"]
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(4000)
    corpus = Corpus(str(tmp_path))
    with pytest.raises(OSError, match=r"a\.tar ends before this member does"):
        corpus.read(place)
    with pytest.raises(FileNotFoundError):
        corpus.read("gone.png")
    assert not Corpus(str(tmp_path / "gone")).exists()


@given(st.text().map(lambda text: f"{text}x.tar"), st.text(), st.integers(0, 2**60), st.integers(0, 2**60))
def test_the_file_of_any_member(file: str, name: str, offset: int, size: int) -> None:
    assert file_of(member(file, name, offset, size)) == file


def test_tars_within_folders_and_names_that_look_like_tars() -> None:
    assert file_of(member("a.tar/b.tar", "c.tar/d.tar/e@1+2", 3, 4)) == "a.tar/b.tar"


@given(st.text())
def test_a_location_without_an_address_is_a_file(text: str) -> None:
    assert file_of(f"{text}.png") == f"{text}.png"


class TestObjectStore:
    """The same over fsspec: an S3 endpoint on this machine."""

    def test_read(self, s3: str, tmp_path: Path, upload) -> None:
        places = write_tar(tmp_path / "a.tar", MEMBERS)
        (tmp_path / "frog.png").write_bytes(b"frog")
        upload(tmp_path, s3)
        corpus = pickle.loads(pickle.dumps(Corpus(s3)))
        assert corpus.exists()
        assert corpus.folder is None
        assert corpus.read("frog.png") == b"frog"
        assert {name: corpus.read(place) for name, place in places.items()} == MEMBERS
        with corpus.on_disk("a.tar") as path:
            assert path.read_bytes() == (tmp_path / "a.tar").read_bytes()
        assert not path.exists()
        with pytest.raises(FileNotFoundError):
            corpus.read("gone.png")
        assert not Corpus(f"{s3}/nothing").exists()
