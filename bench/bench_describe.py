"""Pictures a second that the stage `describe` brings through a server, against one request after the other.

    python bench/bench_describe.py [--pictures 800] [--concurrency 32] [--latency 0.2] [--side 512]

The server is a process of its own on this machine: it takes LATENCY seconds (times 0.5 to 1.5, by chance) per request
and works on CONCURRENCY at once; what comes beyond that waits. JPEGs of SIDE x 3/4 SIDE pixels, one style. The time
includes starting the processes that decode, reading, decoding, reducing, checking and writing; the plain way reads,
decodes and reduces with Pillow, asks, and takes the next picture. "Most" is what such a server could do at all.
"""

import argparse
import asyncio
import base64
import hashlib
import io
import json
import multiprocessing
import os
import random
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from bench_ingest import encoded, illustration
from PIL import Image

from caption.describe import STAGE, DescribeSettings
from shared.engine import LocalEngine
from shared.stages import DECISIONS, Job

DISTINCT = 16
ANSWER = {"message": {"content": "A girl sits on a bench and looks at the sea."}, "finish_reason": "stop"}
BODY = json.dumps({"choices": [ANSWER]}).encode()
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


def serve(port: Any, busy: Any, latency: float, concurrency: int, ready: Event) -> None:
    """Answer every request; `busy` sums up the seconds that requests were worked on."""

    async def run() -> None:
        slots = asyncio.Semaphore(concurrency)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while head := await reader.readuntil(b"\r\n\r\n"):
                    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                    await reader.readexactly(int(length.partition(b":")[2]))
                    async with slots:
                        seconds = latency * random.uniform(0.5, 1.5)
                        await asyncio.sleep(seconds)
                        busy.value += seconds
                    writer.write(REPLY)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 24)
        port.value = server.sockets[0].getsockname()[1]
        ready.set()
        await server.serve_forever()

    asyncio.run(run())


def corpus(folder: Path, pictures: int, side: int) -> dict[str, Path]:
    """Pictures, and what the stages before `describe` would have written."""
    (folder / "source").mkdir()
    images = [encoded(illustration(seed).resize((side, side * 3 // 4)), "JPEG", quality=92) for seed in range(DISTINCT)]
    rows = []
    for number in range(pictures):
        data = images[number % DISTINCT] + number.to_bytes(4, "big")  # Behind its end: another file, the same picture.
        name = f"{number:06}.jpg"
        (folder / "source" / name).write_bytes(data)
        rows.append({"image_id": hashlib.sha256(data).hexdigest(), "location": name, "error": None, "keep": True})
    schema = pa.schema([(name, pa.string()) for name in ("image_id", "location", "error")])
    for name, kind in ("ingest", schema), ("near", DECISIONS):
        (folder / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows, kind), folder / name / "part-0.parquet")
    return {"ingest": folder / "ingest", "near": folder / "near"}


def plain(source: Path, url: str, pictures: int) -> float:
    """Seconds per picture, one after the other."""
    start = time.perf_counter()
    with httpx.Client(timeout=60) as client:
        for path in sorted(source.iterdir())[:pictures]:
            image = Image.open(path).convert("RGB")
            image.thumbnail((1024, 1024), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            image.save(file, "JPEG", quality=92, subsampling=0)
            address = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
            content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "Describe."}]
            body = {"model": "m", "messages": [{"role": "user", "content": content}]}
            client.post(f"{url}/chat/completions", json=body).raise_for_status()
    return (time.perf_counter() - start) / pictures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=800)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--side", type=int, default=512)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    port, busy, ready = context.Value("i"), context.Value("d"), context.Event()
    server = context.Process(target=serve, args=(port, busy, args.latency, args.concurrency, ready), daemon=True)
    server.start()
    ready.wait()
    url = f"http://127.0.0.1:{port.value}/v1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = corpus(folder, args.pictures, args.side)
        one = plain(folder / "source", url, min(args.pictures, 40))
        busy.value = 0
        about = {"model": "m", "url": url, "concurrency": args.concurrency}
        settings = DescribeSettings(server=about, styles={"short": "Describe."})
        job = Job(
            source=str(folder / "source"), settings=settings, folder=folder / "describe" / "out", tables=tables,
            deciders=("near",), engine=LocalEngine(os.cpu_count() or 1),
        )  # fmt: skip
        job.folder.mkdir(parents=True)
        start = time.perf_counter()
        STAGE.run(job)
        seconds = time.perf_counter() - start
    server.terminate()
    print(f"most             {args.concurrency / args.latency:8.1f} pictures/s")
    print(
        f"describe         {args.pictures / seconds:8.1f} pictures/s, {busy.value / seconds:.1f} of {args.concurrency} "
        "requests worked on, on average"
    )
    print(f"one by one       {1 / one:8.1f} pictures/s")
    print(f"ratio            {args.pictures / seconds * one:8.1f}")


if __name__ == "__main__":
    main()
