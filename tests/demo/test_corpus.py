import csv
import io
import json
from collections import Counter
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from caption.vocabulary import read_vocabulary
from demo.characters import CHARACTERS
from demo.corpus import Counts, write_corpus, write_vocabulary

COUNTS = Counts(
    per_character=2, byte_copy=2, reencode=3, resize=2, crop=2, costume_variant=2, corrupt=4, flat=2, tiny=2
)  # fmt: skip
Row = dict[str, str]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    write_corpus(folder, seed=3, counts=COUNTS)
    return folder


@pytest.fixture(scope="module")
def truth(corpus: Path) -> list[Row]:
    with (corpus.parent / "truth.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def of_kind(truth: list[Row], *kinds: str) -> list[Row]:
    return [row for row in truth if row["kind"] in kinds]


def opened(path: Path) -> Image.Image:
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.load()
    return image


def on_white(path: Path) -> Image.Image:
    image = opened(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def distance(one: Path, other: Path) -> int:
    return int(imagehash.phash(on_white(one)) - imagehash.phash(on_white(other)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    counts = Counts(per_character=1, byte_copy=1, reencode=1, resize=1, crop=1, costume_variant=1, corrupt=4)
    written = []
    for name in ("first", "second"):
        write_corpus(tmp_path / name / "corpus", seed=1, counts=counts)
        written.append(contents(tmp_path / name))
    assert written[0] == written[1]


def test_the_truth_lies_beside_the_corpus_and_lists_every_picture_once(corpus: Path, truth: list[Row]) -> None:
    pictures = sorted(name for name in contents(corpus) if not name.endswith((".txt", ".json")))
    assert sorted(row["file"] for row in truth) == pictures


def test_every_kind_is_planted_as_often_as_asked(truth: list[Row]) -> None:
    expected = asdict(COUNTS)
    expected["original"] = expected.pop("per_character") * len(CHARACTERS)
    assert Counter(row["kind"] for row in truth) == expected


def test_each_derived_file_has_an_original_of_its_own_that_shows_the_same_character(truth: list[Row]) -> None:
    derived = [row for row in truth if row["of"]]
    by_name = {row["file"]: row for row in truth}
    assert {row["kind"] for row in derived} == {"byte_copy", "reencode", "resize", "crop", "costume_variant"}
    assert len({row["of"] for row in derived}) == len(derived)
    for row in derived:
        assert by_name[row["of"]]["kind"] == "original"
        assert by_name[row["of"]]["character"] == row["character"]


def test_byte_copies_are_equal(corpus: Path, truth: list[Row]) -> None:
    for row in of_kind(truth, "byte_copy"):
        assert (corpus / row["file"]).read_bytes() == (corpus / row["of"]).read_bytes()


def test_originals_lie_apart(corpus: Path, truth: list[Row]) -> None:
    hashes = [imagehash.phash(on_white(corpus / row["file"])) for row in of_kind(truth, "original")]
    assert min(one - other for one, other in combinations(hashes, 2)) > 6


def test_reencodes_and_resizes_lie_close_to_their_original(corpus: Path, truth: list[Row]) -> None:
    for row in of_kind(truth, "reencode", "resize"):
        assert distance(corpus / row["file"], corpus / row["of"]) <= 4


def test_costume_variants_have_the_size_of_their_original_and_other_pixels(corpus: Path, truth: list[Row]) -> None:
    for row in of_kind(truth, "costume_variant"):
        one, other = (np.asarray(on_white(corpus / row[key])).astype(int) for key in ("file", "of"))
        assert one.shape == other.shape
        assert (np.abs(one - other).max(axis=2) > 40).mean() > 0.002


def test_corrupt_files_do_not_load(corpus: Path, truth: list[Row]) -> None:
    for row in of_kind(truth, "corrupt"):
        with pytest.raises((OSError, SyntaxError)):
            opened(corpus / row["file"])


def test_flat_ones_show_nothing_and_tiny_ones_are_tiny(corpus: Path, truth: list[Row]) -> None:
    for row in of_kind(truth, "flat"):
        assert np.asarray(opened(corpus / row["file"])).std(axis=(0, 1)).max() < 3
    for row in of_kind(truth, "tiny"):
        assert max(opened(corpus / row["file"]).size) <= 48


def test_pictures_have_metadata_that_names_their_character(corpus: Path, truth: list[Row]) -> None:
    for row in truth:
        text, post = (corpus / row["file"]).with_suffix(".txt"), (corpus / row["file"]).with_suffix(".json")
        if not row["character"]:
            assert not text.exists()
            assert not post.exists()
        elif text.exists():
            assert row["character"] in text.read_text(encoding="utf-8").strip().split(", ")
        else:
            fields = json.loads(post.read_text(encoding="utf-8"))
            assert row["character"] in fields.get("tags", fields.get("tag_string_character", "").split())


def test_names_do_not_tell_the_kind(truth: list[Row]) -> None:
    assert all(kind not in row["file"] for row in truth for kind in (row["kind"], row["character"] or "?"))


def test_the_vocabulary_knows_the_names(tmp_path: Path) -> None:
    found = read_vocabulary(write_vocabulary(tmp_path / "tags.csv"), None, None)
    assert not found.problems
    assert {name: entry.category for name, entry in found.tags.items()} == {one.name: "character" for one in CHARACTERS}
