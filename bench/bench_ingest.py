"""What `curate run` computes of a picture, against Pillow with `imagehash.phash` alone.

    python bench/bench_ingest.py

One core, pictures in memory, 1.8 megapixels: drawings of the demo at that size, under grain, so that they compress like
illustrations. Ours is everything the stage `ingest` does with the bytes: sha256, decoding, perceptual hash, sharpness,
flatness, border, the descriptor for the comparison of copies. Prints medians over the pictures.
"""

import hashlib
import io
import random
import time
from collections.abc import Callable

import imagehash
import numpy as np
from PIL import Image

from curate import measure
from curate.dedupe.descriptor import describe
from curate.ingest import read_picture
from demo.characters import random_character, random_scene
from demo.drawing import draw
from shared.images import MAX_PIXELS, decode

PICTURES, ROUNDS = 12, 5
SIZE = (1600, 1125)


def illustration(seed: int, grain: float = 2.5) -> Image.Image:
    """A drawing with soft shading and a little grain."""
    chance = random.Random(seed)
    image = draw(random_scene(chance, random_character(chance))).resize(SIZE, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(seed)
    shade = noise.normal(0, 12, (SIZE[1] // 25, SIZE[0] // 25)).astype(np.float32)
    shading = np.asarray(Image.fromarray(shade).resize(SIZE, Image.Resampling.BICUBIC))
    noise_ = noise.normal(0, grain, (SIZE[1], SIZE[0]))
    return Image.fromarray((np.asarray(image) + (shading + noise_)[..., None]).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def median(function: Callable[[bytes], object], files: list[bytes]) -> float:
    """Milliseconds per file: of each the best of ROUNDS, of these the median."""
    best = []
    for data in files:
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            function(data)
            times.append(time.perf_counter() - start)
        best.append(min(times))
    return float(np.median(best)) * 1e3


def theirs(data: bytes) -> object:
    """What most scripts do."""
    with Image.open(io.BytesIO(data)) as image:
        return imagehash.phash(image)


def main() -> None:
    """Both ways, side by side, for each format."""
    images = [illustration(seed) for seed in range(PICTURES)]
    kinds = {
        "JPEG 4:2:0, quality 92": [encoded(image, "JPEG", quality=92) for image in images],
        "JPEG 4:4:4, quality 95": [encoded(image, "JPEG", quality=95, subsampling=0) for image in images],
        "PNG": [encoded(image, "PNG") for image in images],
        "PNG with alpha": [encoded(image.convert("RGBA"), "PNG") for image in images],
    }
    for kind, files in kinds.items():
        reference, ours = median(theirs, files), median(lambda data: read_picture(data, MAX_PIXELS), files)
        size = np.mean([len(data) for data in files]) / 1e6
        speed = f"Pillow and imagehash {reference:.1f} ms, ours {ours:.1f} ms: {reference / ours:.2f}x"
        print(f"{kind} ({size:.1f} MB): {speed}")
        for part, function in steps(files).items():
            print(f"    {part:<28} {function:5.2f} ms")


def steps(files: list[bytes]) -> dict[str, float]:
    """Milliseconds of each part of ours."""
    pictures = {data: decode(data, MAX_PIXELS, (measure.SIDE, 1)) for data in files}
    working = {data: measure.shrink(picture) for data, picture in pictures.items()}
    grey = {data: image.convert("L") for data, image in working.items()}
    return {
        "sha256 of the file": median(lambda data: hashlib.sha256(data).hexdigest(), files),
        "decode": median(lambda data: decode(data, MAX_PIXELS, (measure.SIDE, 1)), files),
        "reduce": median(lambda data: measure.shrink(pictures[data]), files),
        "perceptual hash": median(lambda data: measure.phash(grey[data]), files),
        "sharpness": median(lambda data: measure.sharpness(grey[data]), files),
        "flatness": median(lambda data: measure.flatness(working[data]), files),
        "border": median(lambda data: measure.border(working[data]), files),
        "descriptor": median(lambda data: describe(working[data]), files),
    }


if __name__ == "__main__":
    main()
