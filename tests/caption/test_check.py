"""What may become a caption: texts as models write them, good and bad."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption.check import LONGEST, Names, clean, problem
from caption.prompts import Known

GOOD = (
    "A girl with long hair sits on a bench and looks at the sea.",
    'Hatsune Miku, with her twintails, holds a sign that reads "I\'m sorry" and smiles!',
    "Rose petals fall around a woman in red. Her hair, tied with a bow, is long and her eyes are blue.",
    "A very, very small frog sits on a leaf under a very, very large mushroom.",
    'Three panels: a cat says "no no no no" to a dog.',
    "Two boys (one of them taller) stand under a tree, painted in soft colours (mostly green and blue).",
    "On the wall stands 「初音ミク」, written in white; below it a girl waves at the viewer.",
    "A woman in the style of the 1990s plays the violin at 3 o'clock in the night...",
    'A sign says "Stop. I cannot help you." in red letters.',
    "She smiles at him. A cat sleeps on the roof. She smiles at him.",
    "The left girl wears a red dress. The right girl wears a blue dress. The middle girl wears a green dress.",
)
BAD = {
    "empty": [("", "stop")],
    "refusal": [
        ("I'm sorry, but I can't help with that.", "stop"),
        ("I\u2019m sorry, but I can\u2019t describe this picture.", "stop"),
        ("I cannot describe this image because of its content.", "stop"),
        ("Unfortunately, I am unable to describe it.", "stop"),
        ("As an AI, I do not describe such pictures.", "stop"),
        ("Sorry, I can't help with this picture.", "stop"),
        ("A girl stands there. I cannot say more about it.", "stop"),
        ("A girl on a beach.", "content_filter"),
    ],
    "loop": [
        ("A girl with a bow, a girl with a bow, a girl with a bow, a girl with a bow.", "length"),
        ("long hair long hair long hair long hair.", "stop"),
        ("She looks at the viewer. Her hair is long. She looks at the viewer.", "stop"),
        ("She is smiling aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.", "stop"),
    ],
    "language": [("一位长发少女坐在长椅上,望着大海 with a hat.", "stop")],
    "markup": [
        ("# A girl\nShe sits on a bench.", "stop"),
        ("- A girl sits here.\n- A sea is there.", "stop"),
        ("1. A girl sits on a bench.\n2. The sea.", "stop"),
        ("A **girl** with long hair sits.", "stop"),
        ('{"caption": "A girl sits on a bench."}', "stop"),
        ("<think>\nWhat is this picture about?", "stop"),
        ("A girl sits on a bench.<|im_end|>.", "stop"),
    ],
    "meta": [
        ("The image shows that a girl is here.", "stop"),
        ("A girl on a bench, as the given tags say.", "stop"),
        ("A girl sits on a bench. Let me know if you need more.", "stop"),
    ],
    "truncated": [
        ("A girl with long hair sits on a bench and looks", "stop"),
        ("A girl with long hair sits on a bench.", "length"),
    ],
    "too_short": [("A girl.", "stop"), ("?", "stop")],
    "too_long": [(" ".join(f"Word{number} is here." for number in range(LONGEST // 10)), "stop")],
}


def known(*characters: str, general: tuple[str, ...] = (), text: str | None = None) -> Known:
    return Known(
        characters=list(characters),
        copyright=["fate_(series)"],
        artist=[],
        general=list(general),
        rating=None,
        text=text,
    )


@pytest.mark.parametrize("text", GOOD)
def test_good_texts_stay_as_they_are(text):
    assert clean(text) == text
    assert problem(text, "stop", known()) is None


@pytest.mark.parametrize(
    ("reason", "text", "finish"), [(reason, *case) for reason, cases in BAD.items() for case in cases]
)
def test_bad_texts_have_a_reason(reason, text, finish):
    found = problem(clean(text), finish, known())
    assert found
    assert found.reason == reason
    assert found.detail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("This image shows a girl on a bench.", "A girl on a bench."),
        ("The illustration depicts two cats at night.", "Two cats at night."),
        ("In this picture, a frog sits on a leaf.", "A frog sits on a leaf."),
        ("The image is a digital drawing of a frog.", "A digital drawing of a frog."),
        ("Caption: A frog sits on a leaf.", "A frog sits on a leaf."),
        ('Sure! Here is the description: "The image shows a frog on a leaf."', "A frog on a leaf."),
        ("\u201cA frog\u2019s leaf is green.\u201d", "A frog's leaf is green."),
        ('"Hello" says a frog to a "bird"', '"Hello" says a frog to a "bird"'),
        ("This image shows a frog.", "This image shows a frog."),  # Nothing that could stand alone is left.
        ("The image shows how it is done.", "The image shows how it is done."),
        ("", ""),
    ],
)
def test_words_about_the_task_are_taken_away(text, expected):
    assert clean(text) == expected


LONGER = ("red_hood_(dc)", "jeanne_d'arc_(fate)", "little_red_riding_hood", "dark_magician_girl")
NAMES = Names(["hatsune_miku", "hatsune_miku_(append)", "sakura_miku", "rose", "saber_(fate)", *LONGER])


@pytest.mark.parametrize(
    ("text", "own", "strange"),
    [
        ("Hatsune Miku sings on a stage.", known("hatsune_miku"), None),
        ("Miku Hatsune's twintails are long.", known("hatsune_miku"), None),
        ("Hatsune Miku sings on a stage.", known("hatsune_miku_(append)"), None),
        ("Hatsune Miku sings on a stage.", known("kagamine_rin"), "Hatsune Miku"),
        ("On the left Miku Hatsune sings on a stage.", known("sakura_miku"), "Miku Hatsune"),
        ("Sakura Miku sings on a stage.", known("hatsune_miku"), "Sakura Miku"),
        ("A girl and Jeanne d'Arc fight.", known("saber_(fate)"), None),  # Not a name as it is written.
        ("A girl and Jeanne D'Arc fight.", known("saber_(fate)"), "Jeanne D'Arc"),
        ("A girl holds a rose. Rose petals fall.", known(), None),
        ("A girl named Rose sits on a bench.", known(), "Rose"),
        ('A girl called "Rose" sits on a bench.', known("rose"), None),
        ("Her name is not known, a Saber is in her hand.", known(), None),
        ("A woman in a red hood waits there.", known(), None),
        ("Red hood, red shoes: a woman waits there.", known(), None),
        ("Red Hood waits on a roof.", known(), "Red Hood"),
        ("Red Hood waits on a roof.", known(general=("red_hood",)), None),
        ("A poster of Hatsune Miku hangs there.", known(text="HATSUNE MIKU LIVE"), None),
        ("It ends with Hatsune. Miku begins.", known(), None),
        ("A Dark Magician Girl stands there.", known(), "Dark Magician Girl"),
    ],
)
def test_names_of_others_are_found(text, own, strange):
    assert NAMES.strange(text, own) == strange
    found = problem(text, "stop", own, NAMES)
    assert (found and (found.reason, found.detail)) == (("wrong_name", strange) if strange else None)


def test_a_picture_without_tags_contradicts_no_name():
    nothing = Known(characters=[], copyright=[], artist=[], general=[], rating=None, text=None)
    assert NAMES.strange("Hatsune Miku sings on a stage.", nothing) is None


@given(st.text(max_size=300))
def test_any_text_can_be_looked_at(text):
    problem(clean(text), "stop", known(), NAMES)


@given(st.lists(st.sampled_from(["a", "frog", "sits"]), min_size=1, max_size=4), st.integers(8, 20))
def test_every_loop_is_found(words, times):
    found = problem(" ".join(words * times) + ".", "stop", known())
    assert found
    assert found.reason == "loop"
