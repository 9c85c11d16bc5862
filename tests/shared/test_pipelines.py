import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field, PositiveInt

from shared import pipelines
from shared.errors import UserError
from shared.pipelines import SHIPPED, default_file, load
from shared.settings import Settings
from shared.stages import Job, Stage


class Limits(Settings):
    low: int = 0
    high: int = 9


class NearSettings(Settings):
    distance: int = Field(default=4, ge=0, le=10)
    rule: Literal["pixels", "bytes"] = "pixels"
    limits: Limits = Limits()
    spare: Limits | None = None
    tags: tuple[str, ...] = ()
    source: Path | None = None


class NeedySettings(Settings):
    model: str


class CacheSettings(Settings):
    area: PositiveInt = 1024


class OptimizerSettings(Settings):
    rate: float = 2e-4


class TrainSettings(Settings):
    steps: PositiveInt = 10
    optimizer: OptimizerSettings = OptimizerSettings()


def nothing(job: Job[Any]) -> None:
    raise AssertionError("validation runs nothing")


@pytest.fixture(autouse=True)
def fake_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    constants: dict[str, dict[str, Any]] = {
        "fakes.near": {"STAGE": Stage(settings=NearSettings, version=1, run=nothing)},
        "fakes.other.near": {"STAGE": Stage(settings=NearSettings, version=1, run=nothing)},
        "fakes.tags": {"STAGE": Stage(settings=NearSettings, version=1, run=nothing)},
        "fakes.needy": {"STAGE": Stage(settings=NeedySettings, version=1, run=nothing)},
        "fakes.train": {"STAGE": Stage(settings=NearSettings, version=1, run=nothing)},
        "fakes.helper": {},
        "fakes.wrong": {"STAGE": "a string"},
        "fakes.sections.cache": {"SETTINGS": CacheSettings},
        "fakes.sections.train": {"SETTINGS": TrainSettings},
    }
    for name, attributes in constants.items():
        module = ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    sections = {"cache": "fakes.sections.cache", "train": "fakes.sections.train"}
    monkeypatch.setattr(pipelines, "SECTIONS", sections)


def put(folder: Path, text: str) -> Path:
    file = folder / "my.yaml"
    file.write_text(text, encoding="utf-8")
    return file


TWO = """
small:
  stages:
    fakes.tags: {}
    fakes.near: {distance: 2, limits: {high: 5}}
  cache: {area: 128}
large:
  stages: {fakes.near: }
"""


def test_a_pipeline_is_settings_in_the_order_of_the_file(tmp_path: Path) -> None:
    pipeline = load(put(tmp_path, TWO), "small")
    assert pipeline.name == "small"
    assert [(spec.name, spec.module) for spec in pipeline.stages] == [("tags", "fakes.tags"), ("near", "fakes.near")]
    assert pipeline.stages[1].settings == NearSettings(distance=2, limits=Limits(high=5))
    assert pipeline.sections == {"cache": CacheSettings(area=128), "train": TrainSettings()}
    assert load(put(tmp_path, TWO), "large").stages[0].settings == NearSettings()


def test_the_only_pipeline_needs_no_name(tmp_path: Path) -> None:
    assert load(put(tmp_path, "one: {stages: {}}")).name == "one"
    assert load(put(tmp_path, "one: {stages: {}}\nsource: /corpus")).name == "one"


def test_the_resolved_document_gives_the_same_pipeline(tmp_path: Path) -> None:
    overrides = ["near.tags=[1girl, 'no']", "near.source=/data/ä", "near.spare.low=3", "train.optimizer.rate=1e-5"]
    pipeline = load(put(tmp_path, TWO), "small", overrides)
    document = pipeline.document()
    assert document["small"]["stages"]["fakes.near"]["tags"] == ["1girl", "no"]
    assert document["small"]["train"] == {"steps": 10, "optimizer": {"rate": 1e-5}}  # with every default
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    again = load(put(tmp_path, text))
    assert again == pipeline
    assert again.document() == document


def test_overrides(tmp_path: Path) -> None:
    overrides = [
        "near.distance=7",
        "near.limits.low=1",
        "cache.area=256",
        "train.optimizer.rate=0.5",
        "tags.rule=bytes",
    ]
    pipeline = load(put(tmp_path, TWO), "small", overrides)
    assert pipeline.stages[1].settings == NearSettings(distance=7, limits=Limits(low=1, high=5))
    assert pipeline.stages[0].settings == NearSettings(rule="bytes")
    assert pipeline.sections["cache"] == CacheSettings(area=256)
    assert pipeline.sections["train"] == TrainSettings(optimizer=OptimizerSettings(rate=0.5))
    later = load(put(tmp_path, TWO), "small", ["near.distance=7", "near.distance=1"])
    assert later.stages[1].settings == NearSettings(distance=1, limits=Limits(high=5))


def test_what_anchors_share_is_overridden_in_one_place(tmp_path: Path) -> None:
    text = "p: {stages: {fakes.tags: {limits: &l {high: 5}}, fakes.near: {limits: *l}}}"
    tags, near = load(put(tmp_path, text), "p", ["near.limits.high=6"]).stages
    assert tags.settings == NearSettings(limits=Limits(high=5))
    assert near.settings == NearSettings(limits=Limits(high=6))


STAGE = "p: {stages: {fakes.near: %s}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "FILE: must map pipeline names to pipelines, is empty"),
        ("[a, b]", "FILE = ['a', 'b']: must be a mapping (key: value)"),
        ("a: [", "FILE: not valid YAML: while parsing"),
        ("a: 2025-13-01", "FILE: not valid YAML: month must be in 1..12"),
        ("1: {}", "FILE: the key 1 is not text; put it in quotes"),
        ("q: {}", "FILE: no pipeline named 'p'; there are: q"),
        ("p: 3", "FILE: p = 3: must be a mapping (key: value)"),
        ("p: {stage: {}}", "FILE: p: unknown key 'stage'; known: stages, cache, train"),
        ("p: {stages: [fakes.near]}", "FILE: p.stages = ['fakes.near']: must be a mapping (key: value)"),
        ("p: {stages: {3: {}}}", "FILE: p.stages: the key 3 is not text; put it in quotes"),
        (STAGE % "4", "FILE: p.stages.fakes.near = 4: must be a mapping (key: value)"),
        ("p: {train: 100}", "FILE: p.train = 100: must be a mapping (key: value)"),
        (
            "p: {stages: {fakes.absent: {}}}",
            "FILE: p.stages: 'fakes.absent' cannot be imported (No module named 'fakes'); "
            "name a module with a constant STAGE, for example curate.ingest",
        ),
        ("p: {stages: {fakes.helper: {}}}", "FILE: p.stages: 'fakes.helper' is not a stage; name a module with"),
        ("p: {stages: {fakes.wrong: {}}}", "FILE: p.stages: 'fakes.wrong' is not a stage; name a module with"),
        ("p: {stages: {.near: {}}}", "FILE: p.stages: '.near' is no module name; name a module with"),
        ("p: {stages: {'': {}}}", "FILE: p.stages: '' is no module name; name a module with"),
        (
            "p: {stages: {fakes.near: {}, fakes.other.near: {}}}",
            "FILE: p.stages.fakes.other.near: the short name 'near' is taken; rename the module",
        ),
        ("p: {stages: {fakes.train: {}}}", "FILE: p.stages.fakes.train: the short name 'train' is taken"),
        (
            STAGE % "{distance: 11}",
            "FILE: p.stages.fakes.near.distance = 11: Input should be less than or equal to 10",
        ),
        (STAGE % "{rule: size}", "FILE: p.stages.fakes.near.rule = 'size': Input should be 'pixels' or 'bytes'"),
        (
            STAGE % "{distnace: 1}",
            "FILE: p.stages.fakes.near.distnace = 1: no such setting; "
            "there are: distance, rule, limits, spare, tags, source",
        ),
        (
            STAGE % "{limits: {max: 1}}",
            "FILE: p.stages.fakes.near.limits.max = 1: no such setting; there are: low",
        ),
        (STAGE % "{spare: {max: 1}}", "FILE: p.stages.fakes.near.spare.max = 1: no such setting; there are: low"),
        ("p: {stages: {fakes.needy: {}}}", "FILE: p.stages.fakes.needy.model: must be given"),
        (
            "p: {train: {optimizer: {rate: .nan}}}",
            "FILE: p.train.optimizer.rate = nan: Input should be a finite number",
        ),
        ("p: {cache: {area: big}}", "FILE: p.cache.area = 'big': Input should be a valid integer"),
    ],
)
def test_errors_say_where_what_and_what_instead(tmp_path: Path, text: str, message: str) -> None:
    file = put(tmp_path, text)
    with pytest.raises(UserError) as error:
        load(file, "p")
    assert str(error.value).startswith(message.replace("FILE", str(file), 1))


def test_every_wrong_setting_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(put(tmp_path, STAGE % "{distance: -1, rule: 3}"), "p")
    assert [line.split(" = ")[0].rpartition(".")[2] for line in str(error.value).splitlines()] == ["distance", "rule"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("near.distance", "--set near.distance: write it as stage.setting=value, for example near.distance=2"),
        ("near=2", "--set near=2: write it as stage.setting=value"),
        ("far.distance=2", "--set far.distance=2: no stage 'far'; there are: tags, near, cache, train"),
        ("near.distance.x=2", "--set near.distance.x=2: 'distance' is 2, not a group of settings"),
        ("near.distance=[", "--set near.distance=[: '[' is not a valid YAML value"),
        ("near.distance=2025-13-01", "--set near.distance=2025-13-01: '2025-13-01' is not a valid YAML value"),
        ("near.distance=x", "FILE: small.stages.fakes.near.distance = 'x': Input should be a valid integer"),
        ("near.nothing=1", "FILE: small.stages.fakes.near.nothing = 1: no such setting; there are: distance, rule"),
        ("train.steps=0", "FILE: small.train.steps = 0: Input should be greater than 0"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, message: str) -> None:
    file = put(tmp_path, TWO)
    with pytest.raises(UserError) as error:
        load(file, "small", [override])
    assert str(error.value).startswith(message.replace("FILE", str(file)))


def test_several_pipelines_need_a_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"my\.yaml: say which pipeline; there are: small, large"):
        load(put(tmp_path, TWO))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: no such file; give a YAML file of pipelines"):
        load(tmp_path / "none.yaml", "p")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\); give a YAML file"):
        load(tmp_path, "p")
    (tmp_path / "latin.yaml").write_bytes("ä: 1".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml: not valid YAML"):
        load(tmp_path / "latin.yaml", "p")


def test_a_local_file_goes_before_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_file() == SHIPPED
    assert {"demo", "booru", "illustration"} <= yaml.safe_load(SHIPPED.read_text()).keys()
    (tmp_path / "pipelines.yaml").write_text("x: {}")
    assert default_file() == Path("pipelines.yaml")


def test_settings_are_frozen_and_finite() -> None:
    with pytest.raises(ValueError, match="frozen"):
        OptimizerSettings().rate = 1.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="finite"):
        OptimizerSettings(rate=float("inf"))
