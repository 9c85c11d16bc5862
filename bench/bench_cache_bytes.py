"""What a picture of 1024 px with one caption takes in the cache, and what storing it in fewer bits would cost.

    python bench/bench_cache_bytes.py [--tokens 100] [--prefix 19] [--data FOLDER]

Needs no GPU, and no model: FLUX's latents (16 x 128 x 128) and Gemma 2 2B's embeddings (tokens x 2304) are drawn. Bytes
are those of shards that this writes; sd-scripts' are counted: its .npz hold float32, text padded to 256 tokens.

Errors are |restored - given| / |given| (Euclidean norms), and the root of the mean over channels of its square, where a
small channel counts as much as a large one. Embeddings are drawn with some channels much larger than others, as those
of language models are. With --data, a folder as `../shared/data`, also of embeddings that a model has made (CLIP's).
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.tensors import write_shard
from train.cache import int8, latents, text
from train.cache.settings import Dtype
from train.cache.stored import columns, from_bytes, record_batch, schema_of, size, to_bytes

LATENT, DIM = (16, 128, 128), 2304
ROWS = 64
DTYPES: tuple[Dtype, ...] = ("bfloat16", "int8")


def latent_rows(dtype: Dtype) -> Iterator[dict[str, object]]:
    """Rows of a shard of latents."""
    for row in range(ROWS):
        place = {"crop": [0.0, 0.0, 1024.0, 1024.0], "original_size": [1024, 1024]}
        shape = dict(zip(("channels", "height", "width"), LATENT, strict=True))
        yield {"image_id": f"{row:064x}", **columns("latent", torch.randn(LATENT), dtype), **shape, **place}


def text_rows(dtype: Dtype, tokens: int, prefix: int) -> Iterator[dict[str, object]]:
    """Rows of a shard of embeddings."""
    for row in range(ROWS):
        about = {"image_id": f"{row:064x}", "caption_sha": f"{row:064x}", "tokens": tokens, "shared": prefix}
        yield {**about, **columns("embedding", torch.randn(tokens - prefix, DIM), dtype), "cut": False}


def written(rows: Iterator[dict[str, object]], schema: object) -> float:
    """Bytes of a row in a shard."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.parquet"
        write_shard(path, [record_batch([row], schema) for row in rows], schema, {})
        return path.stat().st_size / ROWS


def sizes(tokens: int, prefix: int) -> None:
    """Print the bytes of every choice."""
    of_latent = {d: written(latent_rows(d), schema_of(latents.SCHEMA, d)) for d in DTYPES}
    of_text = {d: written(text_rows(d, tokens, prefix), schema_of(text.SCHEMA, d)) for d in DTYPES}
    for dtype in DTYPES:
        assert 0 < of_latent[dtype] - size(int(np.prod(LATENT)), dtype) < 600
        assert 0 < of_text[dtype] - size((tokens - prefix) * DIM, dtype) < 600
    print(f"1024 px, one caption of {tokens} tokens, {prefix} of them the prefix\n")
    print("| latents | text | latent, bytes | caption, bytes | together |\n|---|---|---|---|---|")
    for one in DTYPES:
        for other in DTYPES:
            total = (of_latent[one] + of_text[other]) / 1e6
            print(f"| {one} | {other} | {of_latent[one]:,.0f} | {of_text[other]:,.0f} | {total:.2f} MB |")
    theirs = 4 * int(np.prod(LATENT)), 4 * 256 * DIM
    print(
        f"| sd-scripts: float32 | float32, padded to 256 | {theirs[0]:,} | {theirs[1]:,} | {sum(theirs) / 1e6:.2f} MB |"
    )
    bits = entropy(torch.randn(1 << 20))
    total = (of_latent["bfloat16"] + of_text["bfloat16"]) / 1e6
    print(
        f"\nbfloat16 of normal numbers has {bits:.2f} bits: the best lossless coder gives {total * bits / 16:.2f} MB\n"
    )


def entropy(numbers: Tensor) -> float:
    """Bits per number of what a coder sees that takes each bfloat16 by itself."""
    counts = np.bincount(numbers.bfloat16().view(torch.int16).numpy().view(np.uint16))
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def int8_by(dimension: int) -> Callable[[Tensor], Tensor]:
    """int8 with a float32 scale for each slice along all dimensions but one."""

    def form(x: Tensor) -> Tensor:
        scale = x.flatten(dimension).abs().amax(-1) / 127
        scale = scale.view(*scale.shape, *[1] * (x.ndim - scale.ndim))
        return (x / scale).round() * scale

    return form


def float8_rows(x: Tensor) -> Tensor:
    """float8 (e4m3) with a float32 scale for each row."""
    scale = x.abs().amax(-1, keepdim=True) / 448
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def int8_blocks(x: Tensor) -> Tensor:
    """What the cache does."""
    return int8.restored(int8.quantised(x), x.shape).float()


FORMS = {
    "int8, a scale per row": int8_by(1),
    "float8, a scale per row": float8_rows,
    "int8, a scale per 32": int8_blocks,
}


def embeddings(data: Path | None) -> Iterator[tuple[str, Tensor]]:
    """Names and rows (tokens, channels)."""
    torch.manual_seed(0)
    normal = torch.randn(1024, DIM)
    yield "normal", normal
    for count, times in ((3, 10), (3, 30), (10, 30), (3, 100)):
        scales = torch.ones(DIM)
        scales[torch.randperm(DIM)[:count]] = times
        yield f"normal, {count} channels {times} times as large", normal * scales
    yield "normal, channels e^N(0, 1)", normal * torch.randn(DIM).exp()
    for model in ("vit_b_32", "vit_l_14") if data else ():
        found = sorted((data / "weights/laion_aesthetic_v1" / f"{model}_embeddings").glob("*.npy"))
        rows = np.concatenate([np.load(file).reshape(-1, np.load(file).shape[-1]) for file in found])
        yield f"CLIP {model}", torch.from_numpy(rows).float()


def errors(data: Path | None) -> None:
    """Print what each form costs embeddings."""
    print("| embeddings | " + " | ".join(FORMS) + " |\n" + "|---" * (1 + len(FORMS)) + "|")
    for name, x in embeddings(data):
        cells = []
        for form in FORMS.values():
            error = form(x) - x
            by_channel = (error.square().mean(0) / x.square().mean(0)).mean().sqrt()
            cells.append(f"{error.norm() / x.norm():.4f}, by channel {by_channel:.4f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def speed(tokens: int) -> None:
    """Print the time of writing and reading a tensor, with as many threads as PyTorch takes."""
    print(f"\n{torch.get_num_threads()} threads")
    for name, shape in (("latent", LATENT), (f"{tokens} tokens", (tokens, DIM))):
        x = torch.randn(shape).bfloat16()
        data = bytearray(to_bytes(x, "int8").numpy().tobytes())
        measured = {
            "to int8, with the error": lambda x=x: columns("x", x, "int8"),
            "from int8": lambda data=data, shape=shape: from_bytes(data, shape, "int8"),
        }
        print(f"{name}: " + ", ".join(f"{what} {milliseconds(call):.2f} ms" for what, call in measured.items()))


def milliseconds(call: Callable[[], object], rounds: int = 50) -> float:
    """Of the mean call."""
    call()
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    return (time.perf_counter() - start) / rounds * 1e3


def main() -> None:
    """Bytes, errors, times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100, help="of a caption, prefix included")
    parser.add_argument("--prefix", type=int, default=19, help="of them, those of the prompt prefix")
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    sizes(args.tokens, args.prefix)
    errors(args.data)
    speed(args.tokens)


if __name__ == "__main__":
    main()
