"""`cache-latents` with the shapes of FLUX's autoencoder and of Gemma 2 2B, against diffusers and transformers alone.

    python bench/bench_cache.py [--only latents text variants] [--pictures 2560] [--captions 24576] [--dtype int8]
    python bench/bench_cache.py --small     # On a CPU, in some minutes: does it run?

Needs 15 GB in the temporary folder (4 of pictures, 11 of weights and captions). On an H100 each part takes minutes,
most of them for compiling what is compared with: run one at a time where time is short. Every number is printed as soon
as it is known, and the table of all at the end, or of those that are known where a part fails.

Random weights. Pictures: drawings of 1.5 megapixels in many shapes, half of them JPEG and half PNG, every file another.
Captions: 20 to 256 tokens, 100 on average, prefix included. Ours goes from files to verified shards; printed is the
rate between the first shard written and the last one, so without the time in which models are loaded and compiled.

The references have their inputs on the GPU already. Variants, last because they take long, are the autoencoder alone.
"""

import argparse
import gc
import hashlib
import itertools
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bench_embed import CORES
from bench_ingest import encoded, illustration
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention, AttnProcessor
from PIL import Image
from transformers import AutoModel, Gemma2Config, Gemma2Model

from demo.tiny_lumina import tokenizer, words
from shared.corpus import Corpus
from shared.device import Worker
from shared.worklist import Shard, WorkList, finish
from train.cache import latents, text
from train.cache.autoencoder import ImageEncoder
from train.cache.compute import compute_dtype, default_device
from train.cache.feeder import Feeder, Feeding
from train.cache.resolution import fit
from train.cache.settings import CacheSettings, Dtype
from train.cache.text_encoder import TextEncoder

PIXELS = 1.5e6
SD_SCRIPTS = 4 * (16 * 128 * 128 + 256 * 2304) / 1e6
"""MB that sd-scripts stores of a 1024 px picture with one caption: float32, text padded to 256 tokens."""
DEVICE = default_device()
DTYPE = compute_dtype(DEVICE)
NUMBERS = str(DTYPE).removeprefix("torch.")


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    area: int
    channels: tuple[int, ...]
    text: dict[str, int]
    distinct: int
    pictures: int
    captions: int
    shards: int
    """Of pictures. Those of captions are as large as they are by default."""


TABLE: list[tuple[str, ...]] = []
"""What is measured, of what is compared with, ours, at least, goal."""


def row(*cells: str) -> None:
    """Add a row to the table, and print it at once."""
    TABLE.append(cells)
    print(f"| {' | '.join(cells)} |", flush=True)


GEMMA = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "head_dim": 256, "vocab_size": 256000}
LARGE = Sizes(1024, (128, 256, 512, 512), GEMMA, 32, 2560, 24576, 6)
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "head_dim": 16, "vocab_size": 4096}
SMALL = Sizes(128, (32, 32, 32, 32), TINY, 4, 60, 300, 3)


def drawing(seed: int) -> bytes:
    """A file of 1.5 megapixels; sides from 2 : 1 to 1 : 2."""
    ratio = 2 ** float(np.random.default_rng(seed).uniform(-1, 1))
    size = round((PIXELS * ratio) ** 0.5), round((PIXELS / ratio) ** 0.5)
    image = illustration(seed, grain=4.0)
    image = image.rotate(90, expand=True) if ratio < 1 else image
    image = image.resize(size, Image.Resampling.BICUBIC)
    return encoded(image, "PNG") if seed % 2 else encoded(image, "JPEG", quality=92)


def corpus(folder: Path, sizes: Sizes) -> pa.Table:
    """Files that differ in the bytes behind their pictures; the table of them (image_id, locations)."""
    with ProcessPoolExecutor(min(CORES, sizes.distinct)) as pool:
        files = list(pool.map(drawing, range(sizes.distinct)))
    rows = []
    for number in range(sizes.pictures):
        data = files[number % len(files)] + f"{number:08}".encode()
        name = f"{number:08}.{'png' if number % len(files) % 2 else 'jpg'}"
        (folder / name).write_bytes(data)
        rows.append({"image_id": hashlib.sha256(data).hexdigest(), "locations": [name]})
    print(
        f"{sizes.pictures:,} files, half JPEG, half PNG, {np.mean([len(data) for data in files]) / 1e6:.2f} MB each",
        flush=True,
    )
    return pa.Table.from_pylist(rows)


def autoencoder(sizes: Sizes) -> AutoencoderKL:
    """FLUX's, with random weights."""
    with torch.device(DEVICE):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=sizes.channels,
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).to(DTYPE)


def language_model(sizes: Sizes) -> Gemma2Model:
    """Gemma 2's, with random weights."""
    config = Gemma2Config(
        **sizes.text, num_attention_heads=8, num_key_value_heads=4, query_pre_attn_scalar=sizes.text["head_dim"]
    )
    torch.set_default_dtype(DTYPE)
    with torch.device(DEVICE):
        model = Gemma2Model(config)
    torch.set_default_dtype(torch.float32)
    return model


def written(
    shards: Sequence[Shard], work: Callable[[Sequence[Shard]], Iterator[Shard]], unit: str
) -> tuple[float, int]:
    """Items per second between the first shard written and the last one, and the bytes of an item."""
    finish(shards, work, unit, unit)
    parts = sorted(shards, key=lambda shard: shard.part.stat().st_mtime_ns)
    seconds = (parts[-1].part.stat().st_mtime_ns - parts[0].part.stat().st_mtime_ns) / 1e9
    rate = sum(shard.rows for shard in parts[1:]) / seconds
    return rate, sum(shard.part.stat().st_size for shard in shards) // sum(shard.rows for shard in shards)


def waits(worker: Worker) -> str:
    """The share of the time in which a GPU waits."""
    waited = worker.waited()
    return "no GPU" if waited is None else f"{waited:.1%}"


def per_second(function: Callable[[], object], items: int, seconds: float = 3.0) -> float:
    """Items per second of a function that computes `items` of them, once it is warm."""
    for _ in range(2):
        function()
    rounds, done = 0, 0.0
    start = time.perf_counter()
    while done < seconds:
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        rounds, done = rounds + 1, time.perf_counter() - start
    return rounds * items / done


def computed(encoder: ImageEncoder | TextEncoder, inputs: torch.Tensor) -> torch.Tensor:
    """What an encoder makes of what is on the GPU."""
    return encoder.launch(inputs).result()


def clean() -> None:
    """Give back the memory of what is not used any more."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def latents_part(folder: Path, sizes: Sizes, batch: int, dtype: Dtype) -> None:
    """Pictures, ours and diffusers'."""
    (source := folder / "pictures").mkdir()
    items = corpus(source, sizes)
    vae = autoencoder(sizes)
    vae.save_pretrained(folder / "model" / "vae")
    encoder = ImageEncoder(folder / "model", DEVICE)
    about = latents.describe(encoder, CacheSettings(areas=(sizes.area,), latent_dtype=dtype))
    one = {key: value for key, value in about.items() if key != "areas"} | {"area": sizes.area}
    (out := folder / "latents").mkdir()
    pictures = WorkList(out, ("image_id",), -(-sizes.pictures // sizes.shards))
    pictures.extend(items)
    shards = latents.LatentShards(Corpus(str(source)), [encoder], {out: one}, batch, CORES)
    rate, size = written(pictures.shards(), shards.write, "pictures")
    shapes = {
        (shape["height"], shape["width"])
        for shard in pictures.shards()
        for shape in pq.read_table(shard.part, columns=["height", "width"]).to_pylist()
    }
    waited = waits(encoder.worker)
    print(f"ours, files to shards: {rate:.1f} pictures/s, {len(shapes)} shapes", flush=True)
    row("the GPU waits, latents", "", waited, "under 10 %", "under 3 %")
    print(f"    processes that decode, alone: {decoding(source, items, sizes):.1f} pictures/s", flush=True)
    print(f"    {size / 1e6:.3f} MB a picture", flush=True)
    for rows in (8, 1):
        pixels = torch.randint(256, (rows, sizes.area, sizes.area, 3), dtype=torch.uint8, device=DEVICE)
        alone = per_second(partial(computed, encoder, pixels), rows)
        print(f"ours, GPU only, {rows} at once: {alone:.1f} pictures/s", flush=True)
    del encoder, shards
    clean()
    eager = diffusers_alone(vae, sizes)
    ours, what = f"{rate:.1f}/s", f"{sizes.area} px latents, files to verified shards"
    row(
        what,
        f"diffusers, batch 8, {NUMBERS}, GPU only: {eager:.1f}/s",
        f"{ours}, {rate / eager:.2f} times",
        "50/s",
        "70/s",
    )
    clean()
    compiled = diffusers_alone(vae, sizes, compiled=True)
    row(
        what,
        f"the same compiled, channels_last: {compiled:.1f}/s",
        f"{ours}, {rate / compiled:.2f} times",
        "50/s",
        "70/s",
    )


def decoding(source: Path, items: pa.Table, sizes: Sizes) -> float:
    """Pictures per second that the processes prepare."""
    with Feeder(Corpus(str(source)), [sizes.area], 16, 1, CORES) as feeder:
        waiting: deque[Feeding] = deque()
        start, taken, early = 0.0, 0, sizes.pictures // 4  # By then all processes have started.
        for item in items.slice(0, sizes.pictures // 2).to_pylist():
            if len(waiting) == feeder.ahead:
                feeder.take(waiting.popleft())
                taken += 1
                start = time.perf_counter() if taken == early else start
            waiting.append(feeder.feed(item, [sizes.area]))
        return (taken - early) / (time.perf_counter() - start)


@torch.inference_mode()
def diffusers_alone(
    vae: AutoencoderKL, sizes: Sizes, compiled: bool = False, attention: bool = False, batch: int = 8, **options: Any
) -> float:
    """Pictures per second of `vae.encode`; with `attention` that of plain matrix products."""
    shape, dtype = fit(sizes.area, sizes.area, sizes.area, 16), DTYPE
    assert shape
    inputs = torch.rand(batch, 3, shape.height, shape.width, device=DEVICE, dtype=dtype)
    if compiled:
        vae, inputs = vae.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
    if attention:
        for module in vae.modules():
            if isinstance(module, Attention):
                module.set_processor(AttnProcessor())
    encode: Callable[[torch.Tensor], torch.Tensor] = lambda given: vae.encode(given).latent_dist.mean  # noqa: E731
    if compiled and DEVICE.type == "cuda":
        encode = torch.compile(encode, **options)
    return per_second(lambda: encode(inputs), batch)


def variants_part(sizes: Sizes) -> None:
    """The autoencoder alone, each choice of ours by itself."""
    vae = autoencoder(sizes)
    plain = diffusers_alone(vae, sizes, compiled=True, attention=True, dynamic=False)
    print(f"autoencoder, plain attention, compiled for one shape, 8 at once: {plain:.1f} pictures/s", flush=True)
    torch.backends.cudnn.benchmark = True
    tried = diffusers_alone(vae, sizes, compiled=True, attention=True, dynamic=False)
    print(f"    the same with cudnn.benchmark: {tried:.1f} pictures/s", flush=True)
    torch.backends.cudnn.benchmark = False
    inputs = torch.rand(1, 3, sizes.area, sizes.area, device=DEVICE, dtype=DTYPE)
    exact = autoencoder(sizes).float()
    exact.load_state_dict(vae.state_dict())
    with torch.inference_mode():
        right, found = exact.encode(inputs.float()).latent_dist.mean, vae.encode(inputs).latent_dist.mean.float()
    print(
        f"    bfloat16, plain attention, against float32: {((found - right).norm() / right.norm()).item():.4f}",
        flush=True,
    )


def caption_table(sizes: Sizes, encoder: TextEncoder) -> pa.Table:
    """Captions (image_id, caption_sha, text) of 20 to 256 tokens, 100 on average."""
    chance = np.random.default_rng(0)
    known = np.array([word for word in words() if len(encoder.ids(word)) == len(encoder.ids("smile"))])
    lengths = chance.triangular(20, 24, 256, sizes.captions).astype(int) - len(encoder.shared)
    texts = [" ".join(chance.choice(known, max(1, length))) for length in lengths]
    tokens = [len(ids) for ids in encoder.all_ids(texts)]
    print(f"{len(texts):,} captions of {np.mean(tokens):.0f} tokens ({min(tokens)} to {max(tokens)})", flush=True)
    return pa.table(
        {
            "image_id": [f"{number:064x}" for number in range(len(texts))],
            "caption_sha": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
            "text": texts,
        }
    )


def text_part(folder: Path, sizes: Sizes, dtype: Dtype) -> None:
    """Captions, ours and transformers'."""
    model = folder / "model"
    tokenizer().save_pretrained(model / "tokenizer")
    made = language_model(sizes)
    made.save_pretrained(model / "text_encoder")
    del made
    clean()
    settings = CacheSettings()
    encoder = TextEncoder(model, settings.prompt_prefix, settings.max_tokens, DEVICE)
    items = caption_table(sizes, encoder)
    try:
        encoder.encode(["smile"] * 40)
    except Exception:
        traceback.print_exc()
        print("COMPILED LAYERS FAIL: what follows is without them", flush=True)
        for layer in encoder._encoder.layers:
            layer._compiled_call_impl = None
    (out := folder / "text").mkdir()
    captions = WorkList(out, ("image_id", "caption_sha"), min(settings.shard_rows, sizes.captions // sizes.shards))
    captions.extend(items)
    shards = text.TextShards([encoder], text.describe(encoder, dtype))
    rate, size = written(captions.shards(), shards.write, "captions")
    print(f"ours, to shards: {rate:,.0f} captions/s; {size / 1e6:.3f} MB a caption", flush=True)
    row("the GPU waits, captions", "", waits(encoder.worker), "under 10 %", "under 3 %")
    ids = encoder.all_ids(items["text"].to_pylist())
    tokens = np.mean([len(row) for row in ids])
    for pack in (4096, 8192, 16384, 32768):
        inputs = encoder.bring(list(itertools.islice(itertools.takewhile(fits(pack), ids), len(ids))))
        alone = per_second(partial(computed, encoder, inputs), inputs.shape[1]) / tokens
        print(f"    GPU only, packs of {inputs.shape[1]:,} tokens: {alone:,.0f} captions/s", flush=True)
        if DEVICE.type == "cpu":
            break
    del encoder, shards
    clean()
    whole: Any = AutoModel.from_pretrained(model / "text_encoder", dtype=DTYPE).to(DEVICE).eval()
    ids = ids[:1024]
    for name, rows, longest in (
        ("padded to 256", ids, 256),
        ("sorted, padded to the longest of 32", sorted(ids, key=len), 0),
    ):
        found = transformers_alone(whole, rows, longest)
        row(
            f"captions of {tokens:.0f} tokens, to verified shards",
            f"transformers, {NUMBERS}, {name}: {found:,.0f}/s",
            f"{rate:,.0f}/s, {rate / found:.2f} times",
            "800/s",
            "1,200/s",
        )


def fits(most: int) -> Callable[[list[int]], bool]:
    """Whether captions, one after the other, are together no more than that many tokens."""
    total = 0

    def check(ids: list[int]) -> bool:
        nonlocal total
        total += len(ids)
        return total <= most

    return check


@torch.inference_mode()
def transformers_alone(model: Any, ids: list[list[int]], longest: int, batch: int = 32) -> float:
    """Captions per second of `hidden_states[-2]`."""
    batches = []
    for start in range(0, len(ids), batch):
        rows = ids[start : start + batch]
        inputs = torch.zeros(len(rows), longest or max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(inputs)
        for row, tokens in enumerate(rows):
            inputs[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
        batches.append((inputs.to(DEVICE), mask.to(DEVICE)))

    def one_pass() -> None:
        for inputs, mask in batches:
            model(inputs, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states[-2]

    return per_second(one_pass, len(ids), seconds=0.1)


PARTS = ("latents", "text", "variants")


def main() -> None:
    """All parts; one that fails does not stop the next."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--captions", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16", help="form of the shards")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in ("pictures", "captions") if getattr(args, name)}
    sizes = Sizes(**vars(SMALL if args.small else LARGE) | given)
    place = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{place}, {CORES} cores, torch {torch.__version__}, {sizes.area} px", flush=True)
    parts: dict[str, Callable[[Path], None]] = {
        "latents": lambda folder: latents_part(folder, sizes, args.batch, args.dtype),
        "text": lambda folder: text_part(folder, sizes, args.dtype),
        "variants": lambda _: variants_part(sizes),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            start = time.perf_counter()
            try:
                parts[name](Path(folder))
            except Exception:
                traceback.print_exc()
            clean()
            print(f"({name}: {time.perf_counter() - start:.0f} s)", flush=True)
        kept = [sorted((Path(folder) / kind).glob("part-*")) for kind in ("latents", "text")]
        if all(kept):
            size = sum(
                sum(part.stat().st_size for part in parts_) / rows
                for parts_, rows in zip(kept, (sizes.pictures, sizes.captions), strict=True)
            )
            row(
                "a picture with one caption",
                f"sd-scripts {SD_SCRIPTS:.2f} MB",
                f"{size / 1e6:.2f} MB",
                "1.0 MB",
                "0.6 MB",
            )
    print("\n| what | reference in the same run | ours | at least | goal |\n|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(cells)} |" for cells in TABLE), flush=True)


if __name__ == "__main__":
    main()
