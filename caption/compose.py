"""The stage `compose`: tags and texts become caption variants. Training mixes the variants of a picture.

    tags        1girl, solo, hatsune miku, vocaloid, long hair, smile, artist name
    text        A girl with long hair smiles.
    tags_text   1girl, solo, ..., artist name. A girl with long hair smiles.

Behind the stage `quality` the tags are joined by what else Illustrious says of a picture, its rating, quality and year;
behind `ocr`, by what can be read in it:

    tags        1girl, hatsune miku, vocaloid, general, smile, text "HELLO", artist name, best quality, newest

A variant needs what it is made of: a picture without tags has no `tags`, one without words an empty list.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, islice, pairwise, repeat
from pathlib import Path
from typing import Self

import pyarrow as pa
from pydantic import Field, model_validator

from caption.draw import draw, rename
from caption.limit import Parts, Shortened, counter, shorten
from caption.parts import write_part, write_table
from caption.pictures import Picture, Range, pictures
from caption.variants import Variant, Variants
from caption.vocabulary import read_vocabulary
from caption.write import SAID, Tag
from shared.progress import console
from shared.settings import Settings
from shared.stages import CAPTION, Job, Stage

CAPTIONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("captions", pa.list_(CAPTION), nullable=False),
    ]
)

SHORTENED = pa.struct(
    [
        pa.field("variant", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("left", pa.int32(), nullable=False),
        pa.field("dropped", pa.list_(pa.string()), nullable=False),
    ]
)
"""With a tokenizer the table has a column `shortened` of these: captions that were too long, what was dropped of them
(the first to go first), their tokens before and after."""


class ComposeSettings(Settings):
    """Which variants are written."""

    variants: Variants = Field(default=("tags", "text", "tags_text"), validate_default=True)
    """Names of presets (tags, text, tags_text, kohaku, noobai, xml, augmented), and variants of one's own: a list, or a
    mapping from names to what each is made of."""
    seed: int = 0
    """Of everything that is drawn."""
    always: tuple[str, ...] = ()
    """Further tags that are never dropped, in booru spelling. Illustrious keeps provocative ones, so that they can be
    negated."""
    vocabulary: Path | None = None
    """As `tags.vocabulary`: the aliases that a variant with `other_names` draws from."""
    tokenizer: str | None = None
    """The text encoder's tokenizer, a folder or a name of the hub. With it captions that are too long are shortened and
    reported; without, nothing is counted."""
    max_tokens: int = Field(default=256, ge=8)
    """As `cache.max_tokens`: prefix and beginning-of-sequence token included."""
    prompt_prefix: str = (
        "You are an assistant designed to generate anime images based on textual prompts. <Prompt Start> "
    )
    """As `cache.prompt_prefix`."""

    @model_validator(mode="after")
    def _knows_names(self) -> Self:
        if self.vocabulary is None and (renamed := [one.name for one in self.variants if one.other_names]):
            raise ValueError(f"the variant {renamed[0]!r} wants other names of tags: give vocabulary as well")
        return self


AT_ONCE = 1024
"""Pictures. More at once are slower: Python looks for garbage among all that is alive."""

Counts = Counter[tuple[str, str]]
"""Of captions, by variant and by what happened to them."""


def compose(
    picture: Picture, variants: Sequence[Variant], seed: int = 0, names: Mapping[str, Sequence[str]] = {}
) -> Iterator[Parts]:
    """The captions of a picture that are possible, in the order of `variants`; `names` are other names of tags."""
    has_tags = any(tag.group not in SAID for tag in picture.tags)
    for variant in variants:
        sentences = picture.sentence(variant.sentences)
        if (variant.order and not has_tags) or (variant.sentences and not sentences):
            continue
        tags = _wanted(picture.tags, variant)
        for copy, name in enumerate(variant.names):
            drawn = draw(tags, variant, seed, picture.image_id, copy) if variant.drawn else tags
            if variant.other_names:
                drawn = rename(drawn, variant, seed, picture.image_id, copy, names)
            yield Parts(name, variant.order, drawn, sentences)


def _wanted(tags: list[Tag], variant: Variant) -> list[Tag]:
    if variant.order and variant.ocr and not variant.without:
        return tags
    return [
        tag
        for tag in tags
        if tag.group not in variant.without and (variant.ocr if tag.group == "text" else variant.order)
    ]


def run(job: Job[ComposeSettings]) -> None:
    """Compose the captions of every picture that is still kept, each part of the table in a process of its own."""
    for line in report(write_table(job, "compose", write_range), job.settings):
        console.print(line, soft_wrap=True, markup=False)


def write_range(
    tables: Mapping[str, Path], deciders: Sequence[str], folder: Path, settings: ComposeSettings, part: Range
) -> tuple[int, Counts]:
    """Write one part of the table. Returns how many pictures it has, and the counts of their captions."""
    rows, counts = 0, Counter[tuple[str, str]]()

    def batches(found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for batch in found:
            rows += len(batch)
            known = pictures(batch, settings.always)
            while some := list(islice(known, AT_ONCE)):
                yield composed(some, settings, counts)

    schema = CAPTIONS.append(pa.field("shortened", pa.list_(SHORTENED))) if settings.tokenizer else CAPTIONS
    write_part(tables, deciders, folder, part, part.query(tables), schema, batches)
    return rows, counts


def composed(known: Sequence[Picture], settings: ComposeSettings, counts: Counts) -> pa.RecordBatch:
    """The rows of the table for pictures; what happens is added to `counts`."""
    others = other_names(settings.vocabulary) if settings.vocabulary else {}
    by_picture = [list(compose(picture, settings.variants, settings.seed, others)) for picture in known]
    captions = [parts for found in by_picture for parts in found]
    texts = [parts.text() for parts in captions]
    names = [parts.variant for parts in captions]
    counts.update(zip(names, repeat("written")))
    shortened = _shortened(captions, texts, settings)
    for at, one in shortened.items():
        texts[at] = one.text
        _count(counts, names[at], one, settings.max_tokens)
    offsets = [0, *accumulate(len(found) for found in by_picture)]
    values = pa.StructArray.from_arrays(
        [pa.array(names, pa.string()), pa.array(texts, pa.string())], fields=list(CAPTION)
    )
    columns = {
        "image_id": pa.array([picture.image_id for picture in known], pa.string()),
        "captions": pa.ListArray.from_arrays(offsets, values),
    }
    if settings.tokenizer:
        columns["shortened"] = pa.array(
            [[_row(names[at], shortened[at]) for at in range(*ends) if at in shortened] for ends in pairwise(offsets)],
            pa.list_(SHORTENED),
        )
    return pa.record_batch(columns)


@lru_cache(maxsize=1)
def other_names(vocabulary: Path) -> Mapping[str, Sequence[str]]:
    """The aliases of each tag in a list, sorted; once for each process. Raises UserError where it cannot be read."""
    names: dict[str, list[str]] = {}
    for alias, name in sorted(read_vocabulary(vocabulary, None, None).aliases.items()):
        names.setdefault(name, []).append(alias)
    return names


def _shortened(captions: Sequence[Parts], texts: Sequence[str], settings: ComposeSettings) -> dict[int, Shortened]:
    """Captions with more tokens than the encoder reads, by place."""
    if settings.tokenizer is None:
        return {}
    count = counter(settings.tokenizer, settings.prompt_prefix)
    return {
        at: shorten(parts, tokens, settings.max_tokens, count)
        for at, (parts, tokens) in enumerate(zip(captions, count(texts), strict=True))
        if tokens > settings.max_tokens
    }


def _row(variant: str, one: Shortened) -> dict[str, object]:
    return {"variant": variant, "tokens": one.tokens, "left": one.left, "dropped": one.dropped}


def _count(counts: Counts, variant: str, one: Shortened, limit: int) -> None:
    counts[variant, "too long"] += 1
    counts[variant, "dropped"] += len(one.dropped)
    counts[variant, "still too long"] += one.left > limit


def report(counts: Counts, settings: ComposeSettings) -> Iterator[str]:
    """What was written, and what was too long, by variant."""
    for name in (name for variant in settings.variants for name in variant.names):
        line = f"  {counts[name, 'written']:,} captions {name}"
        if counts[name, "too long"]:
            line += (
                f"; {counts[name, 'too long']:,} had more than {settings.max_tokens} tokens and lost "
                f"{counts[name, 'dropped']:,} tags or sentences"
            )
        if counts[name, "still too long"]:
            line += f"; {counts[name, 'still too long']:,} are still too long, the encoder will cut them"
        yield line


STAGE = Stage(settings=ComposeSettings, version=1, run=run, adds=("captions",))
