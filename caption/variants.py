"""Caption variants as a user asks for them, and the orders of tags that are published."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from shared.settings import Settings


@dataclass(frozen=True)
class Order:
    """How a line of tags is written."""

    groups: tuple[str, ...]
    """From left to right. `count` says who is there (1girl), `text` what can be read in the picture."""
    ratings: Mapping[str, str] = field(default_factory=dict)
    """Ratings that the recipe calls otherwise."""


Group = Literal["count", "character", "copyright", "rating", "general", "text", "artist", "quality", "year"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""In the order of Illustrious (arXiv 2409.19946). The text is ours: no recipe has it."""

SAFE = {"general": "safe", "questionable": "nsfw"}

ORDERS: Mapping[str, Order] = {
    "illustrious": Order(GROUPS),
    # huggingface.co/KBlueLeaf/Kohaku-XL-Epsilon-rev2, "Prompt Format" and "Rating tags"
    "kohaku": Order(
        ("count", "character", "copyright", "artist", "general", "text", "quality", "year", "rating"),
        SAFE | {"explicit": "nsfw, explicit"},
    ),
    # huggingface.co/Laxhar/noobai-XL-1.1, "Caption"; its special tags are quality, year and rating
    "noobai": Order(
        ("count", "character", "copyright", "artist", "quality", "year", "rating", "general", "text"), SAFE
    ),
}


class Variant(Settings):
    """One kind of caption: tags, sentences, or both."""

    name: str = Field(pattern=r"^[\w-]+$")
    """Of letters, digits, - and _. Copies are called NAME, NAME-1, NAME-2 and so on."""
    order: Literal["illustrious", "kohaku", "noobai", "xml"] | None = None
    """How tags are written: in the order of a recipe, or grouped in XML. None: no tags."""
    sentences: bool | str = False
    """A text in sentences: a style of the table `describe`, or `source` for the one that came with the picture.
    true: the first description there is, else the one that came with the picture."""
    without: tuple[Group, ...] = ()
    """Groups of tags that are left out. Without `character` and `copyright` a caption has no names: beside one that has
    them, training can be asked what a model knows of names (`validation.captions`)."""
    ocr: bool = True
    """Whether the legible text of the picture is mentioned, where the table `ocr` has one."""
    shuffle: bool = False
    """Tags are shuffled within their group."""
    dropout: Literal["illustrious"] | Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The chance of each tag to be left out; or `illustrious`, its levels. Never dropped: who is there, characters,
    rating, quality, and the text in the picture."""
    quality_dropout: float = Field(default=0.0, ge=0, le=1)
    """The chance of the quality to be left out (bigASP v2: 0.1)."""
    other_names: float = Field(default=0.0, ge=0, le=1)
    """The chance of each tag to be written under one of its other names, the aliases in `compose.vocabulary`, lest the
    model knows a character by one spelling only."""
    copies: PositiveInt = 1
    """How many are drawn, so that chance survives the cache of embeddings. Training takes each of a picture's captions
    equally often: copies are also a weight."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.order and not self.sentences:
            raise ValueError("give order or sentences: it would be empty")
        if self.copies > 1 and not self.drawn:
            raise ValueError("copies would all be the same; give shuffle, dropout or other_names as well")
        if (self.drawn or self.without) and not self.order:
            raise ValueError("only tags can be shuffled, dropped, renamed and left out; give order as well")
        return self

    @cached_property
    def drawn(self) -> bool:
        """Whether chance has a part in it."""
        return self.shuffle or bool(self.dropout) or bool(self.quality_dropout) or bool(self.other_names)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of its copies."""
        return (self.name, *(f"{self.name}-{copy}" for copy in range(1, self.copies)))


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tags": {"order": "illustrious"},
    "text": {"sentences": True},
    "tags_text": {"order": "illustrious", "sentences": True},
    "kohaku": {"order": "kohaku"},
    "noobai": {"order": "noobai"},
    "xml": {"order": "xml"},
    "augmented": {
        "order": "illustrious",
        "shuffle": True,
        "dropout": "illustrious",
        "quality_dropout": 0.1,
        "copies": 3,
    },
}
"""Variants that can be asked for by name."""


def _named(value: Any) -> Any:
    """A list of variants, from a list of those and of names of presets, or from a mapping of names."""
    if isinstance(value, Mapping):
        return [{"name": name, **options} if options else _preset(name) for name, options in value.items()]
    if isinstance(value, list | tuple):
        return [_preset(item) if isinstance(item, str) else item for item in value]
    return value


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise ValueError(f"no variant {name!r} is known; there are: {', '.join(PRESETS)}. Or say what it is made of")
    return {"name": name, **PRESETS[name]}


def _distinct(variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    names = [name for variant in variants for name in variant.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two variants would be called {twice[0]!r}")
    return variants


Variants = Annotated[tuple[Variant, ...], BeforeValidator(_named), AfterValidator(_distinct)]
