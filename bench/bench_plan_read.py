"""The order of training over a cold cache: random samples by `pread`, against webdataset and mosaicml-streaming.

    python bench/bench_plan_read.py [--gigabytes 4] [--threads 8] [--folder FOLDER]

One set of samples in three formats: a latent of 1024 px (16 x 128 x 128, bfloat16) and a caption of 60 to 140 tokens of
2304. Ours goes through the plan, each epoch a permutation of all samples, with threads reading ahead, and checks the
CRC of every tensor. The others read their shards one after the other, in order, and shuffled as they do by default
(webdataset: shards and a buffer of 1,000 samples; mosaicml-streaming: its own algorithm), without sums. Each gives
every sample once, as two tensors. The others are read in this process and by a DataLoader of 2 workers; the better
counts.

A cache larger than memory is stood in for: before every pass its pages are dropped (posix_fadvise DONTNEED), so that
every byte of it comes from the disk. Two passes each, the better counts.

mosaicml-streaming wants older versions of NumPy and transformers than this project, but works with ours:
`uv pip install --overrides requirements.lock mosaicml-streaming`. What is not installed is left out.
"""

import argparse
import hashlib
import importlib.util
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from shared.tensors import write_shard
from train.cache import latents, text
from train.cache.curated import open_curated
from train.cache.manifest import CacheLayout, by_area, finalise
from train.cache.reader import CacheReader
from train.data.plan import Plan

SHARD, BATCH, DIM = 512, 32, 2304
SHAPE = (16, 128, 128)
ABOUT = {
    "latents": {
        "dtype": "bfloat16",
        "areas": [1024],
        "factor": 8,
        "multiple": 16,
        "channels": 16,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    },
    "text": {"dtype": "bfloat16", "dim": DIM, "prompt_prefix": "", "max_tokens": 256},
}
CAPTION = "a caption"
CAPTION_SHA = hashlib.sha256(CAPTION.encode()).hexdigest()
Sample = tuple[Tensor, Tensor]


def samples(number: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Image ids with latents and embeddings, in the order of the ids."""
    rng = np.random.default_rng(0)
    for index in range(number):
        yield f"{index:064x}", rng.bytes(int(np.prod(SHAPE)) * 2), rng.bytes(int(rng.integers(60, 141)) * DIM * 2)


def write_ours(folder: Path, number: int) -> None:
    """A work directory with a finished cache."""
    layout, pending = CacheLayout(folder), samples(number)
    (one,) = by_area(ABOUT["latents"])
    for shard in range(-(-number // SHARD)):
        rows: tuple[list[Any], list[Any]] = ([], [])
        for image_id, latent, embedding in (next(pending) for _ in range(min(SHARD, number - shard * SHARD))):
            shape = dict(zip(("channels", "height", "width"), SHAPE, strict=True))
            place = {"crop": [0.0] * 4, "original_size": [1024, 1024]}
            tokens = len(embedding) // DIM // 2
            rows[0].append({"image_id": image_id, "latent": latent, **shape, **place})
            rows[1].append(
                {
                    "image_id": image_id,
                    "caption_sha": CAPTION_SHA,
                    "embedding": embedding,
                    "tokens": tokens,
                    "shared": 0,
                    "cut": False,
                }
            )
        folders = (layout.latents(one), layout.text(ABOUT["text"]) / "tags")
        for where, schema, found in zip(folders, (latents.SCHEMA, text.SCHEMA), rows, strict=True):
            batches = (pa.RecordBatch.from_pylist([row], schema) for row in found)
            write_shard(where / f"part-00000-{shard:05}.parquet", batches, schema, {"rejects": []})
    nothing = pa.RecordBatch.from_pylist(
        [{"name": name, "embedding": b"", "tokens": 0} for name in ("prefix", "empty")], text.SHARED_SCHEMA
    )
    write_shard(layout.text(ABOUT["text"]) / "shared.parquet", [nothing], text.SHARED_SCHEMA, {})
    captions = [{"variant": "tags", "text": CAPTION}]
    (folder / "curated").mkdir()
    curated = pa.Table.from_pylist([{"image_id": f"{index:064x}", "captions": captions} for index in range(number)])
    pq.write_table(curated, folder / "curated" / "part-00000.parquet")
    with open_curated(folder) as curated:
        finalise(folder, ABOUT["latents"], ABOUT["text"], curated)


def tensor(data: bytes | bytearray, shape: tuple[int, ...]) -> Tensor:
    """What every reader makes of the bytes of a sample."""
    return torch.frombuffer(bytearray(data) if isinstance(data, bytes) else data, dtype=torch.bfloat16).view(shape)


def ours(folder: Path, threads: int) -> Iterator[Sample]:
    """An epoch of the plan, read ahead by threads."""
    reader = CacheReader(folder)
    plan, running = Plan(seed=0, samples=reader.images, batch=BATCH), deque()

    def read(index: int) -> Sample:
        return reader.latent(index), reader.text(index, "tags")

    order = np.concatenate([plan.step(step) for step in range(-(-reader.images // BATCH))])[: reader.images]
    with ThreadPoolExecutor(threads) as pool:
        for index in order.tolist():
            running.append(pool.submit(read, index))
            if len(running) > 2 * BATCH:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def write_webdataset(folder: Path, number: int) -> None:
    """Tars of SHARD samples."""
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=SHARD, verbose=0) as writer:
        for image_id, latent, embedding in samples(number):
            writer.write({"__key__": image_id, "latent": latent, "text": embedding})


def as_sample(found: dict[str, Any]) -> Sample:
    """The tensors of a sample of webdataset or mosaicml-streaming."""
    return tensor(found["latent"], SHAPE), tensor(found["text"], (-1, DIM))


def webdataset_samples(folder: Path, workers: int, shuffle: bool) -> Iterator[Sample]:
    """An epoch as webdataset gives it."""
    import webdataset

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    found = webdataset.WebDataset(urls, shardshuffle=len(urls) if shuffle else False)
    found = (found.shuffle(1000) if shuffle else found).map(as_sample)
    return iter(DataLoader(found, batch_size=None, num_workers=workers) if workers else found)


def write_streaming(folder: Path, number: int) -> None:
    """Shards as mosaicml-streaming writes them."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"latent": "bytes", "text": "bytes"}, size_limit=SHARD << 20) as writer:
        for _, latent, embedding in samples(number):
            writer.write({"latent": latent, "text": embedding})


def streaming_samples(folder: Path, workers: int, shuffle: bool) -> Iterator[Sample]:
    """An epoch as mosaicml-streaming gives it."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder), shuffle=shuffle, batch_size=BATCH)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=as_samples)
    return (sample for batch in loader for sample in batch)


def as_samples(found: list[dict[str, Any]]) -> list[Sample]:
    """A batch without padding."""
    return [as_sample(sample) for sample in found]


def drop_pages(folder: Path) -> None:
    """Have the kernel forget the files of a folder."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def rate(folder: Path, number: int, start: Callable[[], Iterator[Sample]], passes: int) -> tuple[float, float]:
    """Samples and bytes per second of the best of some passes."""
    best = (0.0, 0.0)
    for _ in range(passes):
        drop_pages(folder)
        begin, count, size = time.perf_counter(), 0, 0
        for latent, embedding in start():
            count, size = count + 1, size + latent.nbytes + embedding.nbytes
        seconds = time.perf_counter() - begin
        assert count == number, f"{count} of {number} samples"
        best = max(best, (count / seconds, size / seconds))
    return best


def main() -> None:
    """Write the samples in every format, then read them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=4, help="Per format; at least 1.")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="Where to write; it needs three times as many gigabytes.")
    options = parser.parse_args()
    torch.multiprocessing.set_sharing_strategy("file_system")
    number = max(BATCH, int(options.gigabytes * 1e9 / (np.prod(SHAPE) * 2 + 100 * DIM * 2)))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, results = Path(name), {}
        (folder / "ours").mkdir()
        write_ours(folder / "ours", number)
        print(
            f"{number:,} samples, {options.gigabytes:g} GB, cold, {os.cpu_count()} cores, {torch.__version__}",
            flush=True,
        )
        results["ours, the plan"] = rate(
            folder / "ours", number, lambda: ours(folder / "ours", options.threads), options.passes
        )
        show("ours, the plan", results)
        for peer, write, read in (
            ("webdataset", write_webdataset, webdataset_samples),
            ("streaming", write_streaming, streaming_samples),
        ):
            if importlib.util.find_spec(peer) is None:
                print(f"{peer}: not installed")
                continue
            write(folder / peer, number)
            for shuffle in (False, True):
                label = f"{peer}, {'shuffled' if shuffle else 'in order'}"
                results[label] = max(
                    rate(folder / peer, number, lambda: read(folder / peer, workers, shuffle), options.passes)  # noqa: B023
                    for workers in (0, 2)
                )
                show(label, results)
            shutil.rmtree(folder / peer)


def show(label: str, results: dict[str, tuple[float, float]]) -> None:
    """One line, with how many times as fast ours is."""
    count, size = results[label]
    ratio = next(iter(results.values()))[0] / count
    print(f"{label:24}{count:9,.0f} samples/s {size / 1e6:9,.0f} MB/s   ours is {ratio:5.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
