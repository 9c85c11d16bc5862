"""`make demo`: draw a corpus, then type what a user would type, and hold the result against the truth."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from demo.corpus import write_corpus, write_vocabulary
from demo.report import compare
from demo.tiny_lumina import write_tiny_lumina
from shared.progress import clock, console

WORK = Path("work/demo")


def main() -> None:
    """The whole pipeline on a fresh machine."""
    start = time.monotonic()
    corpus, model, names = WORK / "corpus", WORK / "tiny-lumina", write_vocabulary(WORK / "tags.csv")
    if not corpus.exists():
        say("drawing the corpus")
        write_corpus(corpus)
    command(
        "curate", "run", str(corpus), "--pipeline", "demo", "--work", str(WORK), "--set", f"tags.vocabulary={names}"
    )
    compare(WORK / "truth.csv", WORK)
    if not model.exists():
        say("building a miniature Lumina-Image-2.0")
        write_tiny_lumina(model)
    command("cache-latents", "--work", str(WORK), "--model", str(model))
    command("train", "--work", str(WORK), "--model", str(model))
    pictures = sorted((WORK / "runs/default/samples").glob("*.png"))
    say(f"done in {clock(time.monotonic() - start)}; drawn by the model you just trained:")
    console.print(str(pictures[-1]), soft_wrap=True)


def command(*words: str) -> None:
    """Run a command of this project as a user would, and stop where it fails."""
    say("$ " + shlex.join(words))
    script = Path(sys.executable).parent / words[0]
    if subprocess.run([str(script), *words[1:]], check=False).returncode:
        sys.exit(f"`{shlex.join(words)}` failed")


def say(text: str) -> None:
    """A line that stands out."""
    console.print(f"\n[bold]{text}[/bold]", soft_wrap=True)


if __name__ == "__main__":
    main()
