"""Who is drawn, and what a picture of them shows: plain data, with the tags and the sentence that describe it."""

import random
from dataclasses import dataclass, replace

COLORS = {
    "black": (52, 48, 62),
    "white": (240, 240, 246),
    "grey": (150, 152, 165),
    "red": (206, 56, 58),
    "pink": (246, 150, 184),
    "orange": (240, 136, 50),
    "brown": (128, 82, 56),
    "blonde": (247, 214, 112),
    "yellow": (250, 206, 66),
    "green": (78, 168, 92),
    "aqua": (92, 205, 214),
    "blue": (74, 118, 214),
    "purple": (146, 92, 196),
}
HAIR_COLORS = ("black", "white", "red", "pink", "orange", "brown", "blonde", "green", "aqua", "blue", "purple")
EYE_COLORS = ("red", "orange", "brown", "yellow", "green", "aqua", "blue", "purple")
CLOTHES_COLORS = ("black", "white", "red", "pink", "orange", "yellow", "green", "aqua", "blue", "purple")
HAIR_STYLES = ("bob_cut", "long_hair", "twintails", "ponytail", "spiked_hair", "double_bun")
CLOTHES = ("dress", "hoodie", "serafuku", "kimono", "armor", "overalls")
ACCESSORIES = ("none", "hair_bow", "glasses", "witch_hat", "cat_ears", "crown", "hair_flower", "scarf")
BACKGROUNDS = (
    "simple_background", "sky", "sunset", "forest", "night", "beach", "indoors", "flower_field", "polka_dot_background"
)  # fmt: skip
POSES = ("standing", "arms_up", "waving", "hands_on_hips")
EXPRESSIONS = ("smile", "open_mouth", "closed_eyes", "serious")
FRAMINGS = ("full_body", "upper_body", "portrait")


@dataclass(frozen=True)
class Character:
    """An identity: what stays the same in every picture of someone."""

    name: str
    is_girl: bool
    hair: str
    hair_style: str
    eyes: str
    clothes: str
    clothes_color: str
    accessory: str
    accessory_color: str


@dataclass(frozen=True)
class Scene:
    """One picture of a character. Lengths are in pixels, places in shares of the picture."""

    character: Character
    pose: str
    expression: str
    background: str
    framing: str
    flip: bool
    width: int
    height: int
    shift: tuple[float, float]
    """Where the figure stands, from the middle."""
    scale: float
    tilt: float
    """Of the head, in head radii."""
    seed: int
    """Of the background's details."""


CHARACTERS = (
    Character("aoi", True, "blue", "long_hair", "yellow", "dress", "white", "hair_flower", "pink"),
    Character("momiji", True, "orange", "twintails", "green", "kimono", "red", "none", "red"),
    Character("kuro", False, "black", "spiked_hair", "red", "hoodie", "purple", "none", "red"),
    Character("sakura", True, "pink", "bob_cut", "green", "serafuku", "blue", "hair_bow", "red"),
    Character("yuki", True, "white", "long_hair", "blue", "kimono", "aqua", "none", "blue"),
    Character("hinata", True, "blonde", "ponytail", "blue", "overalls", "green", "none", "red"),
    Character("midori", True, "green", "double_bun", "orange", "dress", "yellow", "glasses", "black"),
    Character("murasaki", True, "purple", "long_hair", "purple", "dress", "black", "witch_hat", "purple"),
    Character("akane", True, "red", "ponytail", "brown", "armor", "grey", "none", "red"),
    Character("taiga", False, "brown", "spiked_hair", "yellow", "hoodie", "orange", "cat_ears", "brown"),
    Character("mizu", True, "aqua", "twintails", "red", "serafuku", "black", "none", "red"),
    Character("leo", False, "blonde", "bob_cut", "purple", "armor", "blue", "crown", "yellow"),
)
"""The twelve of the demo."""


def random_character(rng: random.Random) -> Character:
    """Somebody who has no name."""
    return Character(
        name="",
        is_girl=rng.random() < 0.75,
        hair=rng.choice(HAIR_COLORS),
        hair_style=rng.choice(HAIR_STYLES),
        eyes=rng.choice(EYE_COLORS),
        clothes=rng.choice(CLOTHES),
        clothes_color=rng.choice(CLOTHES_COLORS),
        accessory=rng.choice(ACCESSORIES),
        accessory_color=rng.choice(CLOTHES_COLORS),
    )


def random_scene(rng: random.Random, character: Character) -> Scene:
    """A picture of a character, sides of about 170 to 330 px, aspect from 2:3 to 3:2."""
    side, aspect = rng.uniform(210, 270), rng.uniform(-0.088, 0.088)
    return Scene(
        character=character,
        pose=rng.choice(POSES),
        expression=rng.choice(EXPRESSIONS),
        background=rng.choice(BACKGROUNDS),
        framing=rng.choice(FRAMINGS),
        flip=rng.random() < 0.5,
        width=round(side * 10**aspect),
        height=round(side * 10**-aspect),
        shift=(rng.uniform(-0.12, 0.12), rng.uniform(-0.04, 0.06)),
        scale=rng.uniform(0.85, 1.15),
        tilt=rng.uniform(-0.18, 0.18),
        seed=rng.randrange(2**32),
    )


def other_costume(rng: random.Random, scene: Scene) -> Scene:
    """The same picture in clothes of another colour: a variant, not a duplicate."""
    character = scene.character
    color = rng.choice([color for color in CLOTHES_COLORS if color != character.clothes_color])
    return replace(scene, character=replace(character, clothes_color=color))


def tags(scene: Scene) -> dict[str, list[str]]:
    """Booru tags by category, in booru spelling."""
    c = scene.character
    general = [
        "1girl" if c.is_girl else "1boy",
        "solo",
        f"{c.hair}_hair",
        c.hair_style,
        f"{c.eyes}_eyes",
        f"{c.clothes_color}_{c.clothes}",
        *([] if c.accessory == "none" else [c.accessory]),
        scene.pose,
        scene.expression,
        scene.background,
        scene.framing,
    ]
    return {"character": [c.name] if c.name else [], "general": general}


def sentence(scene: Scene) -> str:
    """The picture in one sentence."""
    c = scene.character
    who = f"{c.name}, a {_kind(c)}" if c.name else f"a {_kind(c)}"
    accessory = "" if c.accessory == "none" else f" and a {_words(c.accessory)}"
    return (
        f"A drawing of {who} with {c.hair} {_words(c.hair_style)} and {c.eyes} eyes, wearing a {c.clothes_color} "
        f"{_words(c.clothes)}{accessory}, {_words(scene.pose)}, {_words(scene.background)}."
    )


def _kind(character: Character) -> str:
    return "girl" if character.is_girl else "boy"


def _words(tag: str) -> str:
    return tag.replace("_", " ")
