"""Memory of `curate run` over many small pictures in tars: flat, whatever their number.

    python bench/bench_curate_memory.py [PICTURES ...]      default: 100000 1000000

Writes tars of ten thousand 64 x 64 pictures each (one in twenty a re-encoded copy of another) below bench/.corpus,
runs the pipeline `illustration` without its limits of size, and samples the memory of the command and its workers
(PSS: shared pages count once). Prints pictures, seconds of each stage, and the peak.
"""

import io
import re
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

CORPUS = Path(__file__).parent / ".corpus"
PER_TAR = 10_000
SIDE = 64


def write_tar(number: int) -> None:
    """One tar of pictures: soft blobs of colour, each like no other."""
    path = CORPUS / f"{number:05}.tar"
    if path.exists():
        return
    random = np.random.default_rng(number)
    with tarfile.open(path.with_suffix(".tmp"), "w", format=tarfile.GNU_FORMAT) as tar:
        image = Image.new("RGB", (SIDE, SIDE))
        for place in range(PER_TAR):
            copy = place % 20 == 19
            if not copy:
                image = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=70 if copy else 90)
            entry = tarfile.TarInfo(f"{number:05}{place:05}.jpg")
            entry.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(entry, buffer)
    path.with_suffix(".tmp").rename(path)


def memory(process: psutil.Process) -> int:
    """Bytes that a process and its children hold."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue  # It has just ended.
    return total


def measure(pictures: int) -> None:
    """Run `curate` over so many pictures."""
    tars = pictures // PER_TAR
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_tar, range(tars)))
    source, work = CORPUS / f"first{tars}", CORPUS / "work"
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    source.mkdir()
    for number in range(tars):
        (source / f"{number:05}.tar").hardlink_to(CORPUS / f"{number:05}.tar")
    options = ["--work", str(work), "--set", "filter.min_pixels=0", "--set", "filter.max_flatness=null"]
    curate = [str(Path(sys.executable).with_name("curate")), "run", str(source), *options]
    start, peak = time.monotonic(), 0
    with subprocess.Popen(curate, stdout=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, memory(watched))
            time.sleep(0.5)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        sys.exit(output)
    stages = " ".join(re.findall(r"^\w+: [\d:]+$", output, re.MULTILINE))
    seconds = time.monotonic() - start
    print(f"{pictures:,} pictures: {seconds:.0f} s, peak {peak / 2**30:.2f} GiB; {stages}")


if __name__ == "__main__":
    CORPUS.mkdir(exist_ok=True)
    for count in sys.argv[1:] or ["100000", "1000000"]:
        measure(int(count))
    shutil.rmtree(CORPUS)
