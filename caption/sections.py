"""Where a general tag stands in an XML caption: a guess by its words, as vocabularies do not say."""

import re
from collections.abc import Sequence

from caption.persons import PERSONS

PERSON = re.compile(PERSONS.replace("_", " "))
"""Danbooru counts to five; 6+girls are some number."""

PERSONAL = ("appearance", "clothing", "body_type", "expression", "action")
"""Elements of a character, of those of NewBie-image the ones that tags can fill."""

GENERAL = ("style", "background", "environment", "perspective", "lighting", "other")
"""Elements of the whole picture."""

_WORDS = {
    "appearance": """hair eyes eye bangs ears tail tails horns horn wings skin freckles fang fangs braid braids
        twintails ponytail ahoge sidelocks pupils eyebrows eyelashes mole scar bun buns halo makeup lips nails eyeshadow
        hairstyle beard""",
    "clothing": """dress shirt skirt pants shorts uniform serafuku kimono yukata jacket coat hoodie sweater vest cape
        cloak hat cap beret bow ribbon ribbons bowtie necktie neckerchief gloves socks thighhighs kneehighs pantyhose
        boots shoes footwear sandals sneakers loafers heels collar sleeves apron armor swimsuit bikini leotard bodysuit
        underwear bra panties lingerie glasses eyewear earrings earring jewelry necklace choker hairband hairclip
        headband headwear headphones hairpin scrunchie crown tiara mask belt scarf legwear ornament frills veil bracelet
        ring detached_sleeves pinafore suit clothes costume buttons zipper hood overalls jeans""",
    "body_type": "breasts cleavage midriff navel thighs legs muscular abs chubby tall collarbone shoulders barefoot",
    "expression": """smile blush frown grin tears smirk pout expressionless closed_eyes closed_mouth open_mouth
        tongue_out one_eye_closed crying angry sad happy embarrassed surprised :d :o :3 :p ;d ;) >_< ^_^ =_= @_@ sweat
        sweatdrop half-closed_eyes parted_lips teeth""",
    "action": """standing sitting lying kneeling squatting walking running jumping flying floating sleeping eating
        drinking reading dancing singing fighting holding looking pointing waving leaning hugging carrying wariza seiza
        v salute on_back on_side on_stomach head_tilt hand_up hands_up arms_up arm_up outstretched_arm
        facing_viewer crossed_arms hand_on_own_hip crossed_legs""",
    "style": """monochrome greyscale sketch lineart chibi watercolor realistic sepia partially_colored style medium
        media pixel_art 3d comic 4koma parody retro_artstyle spot_color limited_palette""",
    "background": "background",
    "environment": """outdoors indoors sky cloud clouds night day sunset water ocean beach sea forest tree trees grass
        city cityscape street building room bedroom classroom window rain snow mountain moon stars field garden""",
    "perspective": """from upper_body full_body cowboy_shot lower_body portrait close-up pov angle focus
        profile foreshortening perspective wide_shot""",
    "lighting": "lighting light sunlight backlighting shadow moonlight glow bloom rays lens_flare",
}
_SECTIONS = {word: section for section, words in _WORDS.items() for word in words.split()}


def section(name: str) -> str:
    """By the whole tag, else its last word (blue_hair), else its first (holding_sword)."""
    words = name.split("_")
    keys = (name, words[-1], words[0])
    return next((_SECTIONS[key] for key in keys if key in _SECTIONS), "other")


def people(counts: Sequence[str]) -> list[str]:
    """girl, boy or other of every person, as count tags say ("" of one who is merely solo); none if they do not say."""
    found = [PERSON.fullmatch(count) for count in counts]
    exact = {match[2]: int(match[1]) for match in found if match and match[1] in "12345"}
    if any(match and match[2] not in exact for match in found):
        return []
    return [kind for kind, number in exact.items() for _ in range(number)] or [""] * ("solo" in counts)
