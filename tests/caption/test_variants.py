"""What can be asked for."""

import pytest
from pydantic import ValidationError

from caption.compose import ComposeSettings
from caption.variants import GROUPS, ORDERS, PRESETS
from shared.errors import UserError
from shared.pipelines import load


def test_lists_and_mappings_mean_the_same():
    own = {"order": "illustrious", "shuffle": True, "copies": 2}
    as_list = ComposeSettings(variants=["tags", {"name": "own", **own}])
    as_mapping = ComposeSettings(variants={"tags": None, "own": own})
    assert as_list == as_mapping
    assert [variant.name for variant in as_list.variants] == ["tags", "own"]
    assert as_list.variants[1].names == ("own", "own-1")
    assert ComposeSettings.model_validate(as_list.model_dump(mode="json")) == as_list


def test_the_order_of_variants_is_seen_by_fingerprints():
    one, other = (
        ComposeSettings(variants=names).model_dump(mode="json") for names in (["tags", "text"], ["text", "tags"])
    )
    assert one != other


def test_all_presets_are_valid_and_every_order_complete():
    assert len(ComposeSettings(variants=list(PRESETS)).variants) == len(PRESETS)
    assert all(sorted(order.groups) == sorted(GROUPS) for order in ORDERS.values())


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (["tgs"], "no variant 'tgs' is known; there are: tags, text"),
        ({"tags": None, "tags-1": None}, "no variant 'tags-1'"),
        ({"x": {"sentences": False}}, "give order or sentences"),
        ({"x": {"order": "xml", "copies": 2}}, "would all be the same"),
        ({"x": {"sentences": True, "shuffle": True}}, "only tags can be"),
        ({"a/b": {"order": "xml"}}, "should match pattern"),
        ({"x": {"order": "xml", "dropout": 1.0}}, "less than 1"),
        ({"x": {"order": "alphabet"}}, "'illustrious', 'kohaku', 'noobai' or 'xml'"),
        ({"x": {"order": "xml", "shuffle": True, "copies": 2}, "x-1": {"order": "xml"}}, "would be called 'x-1'"),
    ],
)
def test_what_cannot_be_is_refused(variants, message):
    with pytest.raises(ValidationError, match=message):
        ComposeSettings(variants=variants)


def test_errors_name_the_setting_and_what_there_is(tmp_path):
    file = tmp_path / "pipelines.yaml"
    file.write_text("a: {stages: {caption.compose: {variants: {x: {order: xml, colour: red}}}}}")
    with pytest.raises(UserError, match=r"variants\.0\.colour = 'red': no such setting; there are: name, order"):
        load(file)
