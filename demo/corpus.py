"""The demo's corpus: illustrations of twelve characters with metadata, and planted troubles of every kind.

The truth about every file is written beside the corpus, as `truth.csv`: file, kind, of (the original it was made
from), character.
"""

import csv
import io
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.characters import CHARACTERS, Scene, other_costume, random_character, random_scene, sentence, tags
from demo.drawing import draw, draw_transparent

MIN_DISTANCE = 8
"""Two originals differ in at least this many of the 64 bits of their perceptual hashes."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many files of each kind."""

    per_character: int = 32
    byte_copy: int = 20
    reencode: int = 20
    resize: int = 15
    crop: int = 12
    costume_variant: int = 12
    corrupt: int = 8
    flat: int = 6
    tiny: int = 6


@dataclass(frozen=True)
class Planted:
    """One file of the corpus and the truth about it."""

    data: bytes
    extension: str
    kind: str
    of: "Planted | None" = None
    scene: Scene | None = None


def write_corpus(folder: Path, seed: int = 0, counts: Counts | None = None) -> Path:
    """Write the corpus into `folder` and return the path of its truth. Same seed, same bytes.

    The folder appears complete or not at all.
    """
    counts = counts or Counts()
    rng = random.Random(seed)
    originals = list(distinct_originals(rng, counts.per_character))
    files = [*originals, *plants(rng, originals, counts)]
    rng.shuffle(files)
    names = {id(file): f"{rng.choice('abcd')}/{number:05}.{file.extension}" for number, file in enumerate(files)}

    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for file in files:
        path = temporary / names[id(file)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        if file.scene is not None:
            write_metadata(path, file.scene, rng)
    truth = folder.parent / "truth.csv"
    with truth.open("w", encoding="utf-8", newline="") as output:
        writer = csv.writer(output)
        writer.writerow(["file", "kind", "of", "character"])
        for file in sorted(files, key=lambda file: names[id(file)]):
            character = file.scene.character.name if file.scene else ""
            writer.writerow([names[id(file)], file.kind, names[id(file.of)] if file.of else "", character])
    temporary.rename(folder)
    return truth


def write_vocabulary(path: Path, counts: Counts | None = None) -> Path:
    """Write which tags are names, as lists of Danbooru's tags have it: most of the metadata do not say."""
    per_character = (counts or Counts()).per_character
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{one.name},4,{per_character},""\n' for one in CHARACTERS), encoding="utf-8")
    return path


def distinct_originals(rng: random.Random, per_character: int) -> Iterator[Planted]:
    """Pictures whose perceptual hashes lie apart, so that what is a duplicate is never a matter of taste.

    Hashed as they are written, on white: a lossy encoding moves a hash by some bits.
    """
    hashes: list[NDArray[np.bool_]] = []
    for character in CHARACTERS:
        wanted = len(hashes) + per_character
        while len(hashes) < wanted:
            file = original(rng, random_scene(rng, character))
            bits = imagehash.phash(opened(file)).hash.ravel()
            if all(np.count_nonzero(bits != other) >= MIN_DISTANCE for other in hashes):
                hashes.append(bits)
                yield file


def original(rng: random.Random, scene: Scene) -> Planted:
    """A picture as a file: PNG (transparent where there is no background), JPEG or WebP."""
    kind = rng.choices(("png", "jpg", "webp"), (5, 4, 1))[0]
    transparent = kind == "png" and scene.background == "simple_background"
    image = draw_transparent(scene) if transparent else draw(scene)
    return Planted(encoded(image, kind, rng.randint(90, 95)), kind, "original", scene=scene)


def plants(rng: random.Random, originals: list[Planted], counts: Counts) -> Iterator[Planted]:
    """The troubles. Every one but the last two kinds is made from an original of its own."""
    sources = iter(rng.sample(originals, len(originals)))
    for _ in range(counts.byte_copy):
        source = next(sources)
        yield Planted(source.data, source.extension, "byte_copy", source, source.scene)
    for _ in range(counts.reencode):
        source = next(sources)
        yield Planted(encoded(opened(source), "jpg", 75), "jpg", "reencode", source, source.scene)
    for _ in range(counts.resize):
        source, share = next(sources), rng.uniform(0.7, 0.8)
        image = opened(source)
        smaller = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.LANCZOS)
        yield Planted(encoded(smaller, "png"), "png", "resize", source, source.scene)
    for _ in range(counts.crop):
        source = next(sources)
        image = opened(source)
        x, y = round(image.width * rng.uniform(0.008, 0.015)), round(image.height * rng.uniform(0.008, 0.015))
        cropped = image.crop((x, y, image.width - x, image.height - y))
        yield Planted(encoded(cropped, "png"), "png", "crop", source, source.scene)
    for _ in range(counts.costume_variant):
        source = next(sources)
        assert source.scene is not None
        scene = other_costume(rng, source.scene)
        yield Planted(encoded(draw(scene), "png"), "png", "costume_variant", source, scene)
    for number in range(counts.corrupt):
        yield Planted(broken(rng, next(sources), number), rng.choice(("png", "jpg")), "corrupt")
    for _ in range(counts.flat):
        yield Planted(encoded(almost_one_color(rng), "png"), "png", "flat")
    for _ in range(counts.tiny):
        image = draw(random_scene(rng, random_character(rng)))
        image.thumbnail((48, 48))
        yield Planted(encoded(image, "png"), "png", "tiny")


def encoded(image: Image.Image, kind: str, quality: int = 92) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    options = {} if kind == "png" else {"quality": quality}
    image.save(buffer, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[kind], **options)
    return buffer.getvalue()


def opened(file: Planted) -> Image.Image:
    """The picture of a file, on white."""
    image = Image.open(io.BytesIO(file.data)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def broken(rng: random.Random, source: Planted, number: int) -> bytes:
    """Bytes that are no picture: cut off, noise, text, or nothing."""
    kind = number % 4
    if kind == 0:
        return source.data[: rng.randint(200, 600)]
    return (b"", rng.randbytes(3000), b"<html><body>404 not found</body></html>" + rng.randbytes(4))[kind - 1] or b""


def almost_one_color(rng: random.Random) -> Image.Image:
    """A picture that shows nothing: one colour with a hint of noise, or a soft gradient."""
    size = rng.randint(200, 300)
    base = np.asarray([rng.randint(0, 250) for _ in range(3)], dtype=float)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 0.7, (size, size, 3))
    slope = np.linspace(0, rng.choice((0, 6)), size)[:, None, None]
    return Image.fromarray(np.clip(base + noise + slope, 0, 255).round().astype(np.uint8))


def write_metadata(path: Path, scene: Scene, rng: random.Random) -> None:
    """Tags beside a picture: a text file, or a booru's JSON in one of two forms."""
    by_category = incomplete(tags(scene), rng)
    form = rng.randrange(4)
    if form < 2:
        everything = [*by_category["general"][:2], *by_category["character"], *by_category["general"][2:]]
        text = ", ".join(tag.replace("_", " ") for tag in everything)
        path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
        return
    post: dict[str, str | int | list[str]] = {
        "rating": rng.choice(("g", "s")),
        "score": round(rng.gauss(20, 15)),
        "fav_count": rng.randint(0, 60),
        "created_at": f"20{rng.randint(18, 25)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T12:00:00+00:00",
        "source": f"https://example.org/posts/{rng.randint(10**6, 10**7)}",
        "tag_string_artist": rng.choice(("hand_of_python", "pillow_painter")),
    }
    if form == 2:
        post["tags"] = [*by_category["character"], *by_category["general"]]
    else:
        post["tag_string_general"] = " ".join(by_category["general"])
        post["tag_string_character"] = " ".join(by_category["character"])
    if rng.random() < 0.6:
        post["caption"] = sentence(scene)
    path.with_suffix(".json").write_text(json.dumps(post, indent=1) + "\n", encoding="utf-8")


def incomplete(by_category: dict[str, list[str]], rng: random.Random) -> dict[str, list[str]]:
    """The tags somebody bothered to write: who it is, and about half of what there is to see."""
    counts, rest = by_category["general"][:2], by_category["general"][2:]
    return by_category | {"general": counts + [tag for tag in rest if rng.random() < 0.55]}
