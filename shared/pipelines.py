"""Named pipelines: read from YAML, validated as a whole before any work starts.

A pipeline says which stages `curate run` goes through, in order, and how `cache-latents` and `train` are set:

    NAME:
      stages:
        curate.ingest: {max_pixels: 100000000}     # a stage is a module; below it are its settings
        curate.dedupe.near: {distance: 4}
      cache: {areas: [1024]}
      train: {steps: 26500}

Stages are named by module, so `curate`, `caption` and a user's own package take part without importing
one another. On the command line a stage is addressed by the last part of its name: `--set near.distance=2`.
"""

import copy
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from shared.errors import UserError
from shared.settings import Settings
from shared.stages import Stage

SHIPPED = Path(__file__).resolve().parent.parent / "pipelines.yaml"
"""The pipelines that come with the project; a `pipelines.yaml` in the current folder goes before them."""

SECTIONS = {"fetch": "curate.fetch.settings", "cache": "train.cache.settings", "train": "train.settings"}
"""Sections of a pipeline beside its stages, and the module whose `SETTINGS` validates each."""


PLACES = ("source", "pictures")
"""What `curate run` writes down beside the pipeline: what it was run on, and where the pictures lie if not there."""


@dataclass(frozen=True)
class StageSpec:
    """A stage of a pipeline with its settings."""

    module: str
    stage: Stage[Any]
    settings: Settings

    @property
    def name(self) -> str:
        """The short name: folder of its table, and key on the command line."""
        return self.module.rpartition(".")[2]


@dataclass(frozen=True)
class Pipeline:
    """A validated pipeline."""

    name: str
    stages: tuple[StageSpec, ...]
    sections: Mapping[str, Settings]

    def document(self) -> dict[str, Any]:
        """The pipeline with every default filled in, in the form of `pipelines.yaml`."""
        stages = {spec.module: spec.settings.model_dump(mode="json") for spec in self.stages}
        sections = {key: settings.model_dump(mode="json") for key, settings in self.sections.items()}
        return {self.name: {"stages": stages, **sections}}


def default_file() -> Path:
    """`pipelines.yaml` of the current folder, else the one shipped with the project."""
    local = Path("pipelines.yaml")
    return local if local.exists() else SHIPPED


def load(file: Path, name: str | None = None, overrides: Iterable[str] = ()) -> Pipeline:
    """Read and validate the pipeline `name` (or the only one) of `file`, after `overrides` (key=value).

    Raises UserError naming the file, the key, the value and what would be accepted.
    """
    document = _read(file)
    for key in PLACES:
        document.pop(key, None)
    if name is None and len(document) == 1:
        name = next(iter(document))
    if name is None:
        raise UserError(f"{file}: say which pipeline; there are: {', '.join(document)}")
    if name not in document:
        raise UserError(f"{file}: no pipeline named {name!r}; there are: {', '.join(document)}")
    where = f"{file}: {name}"
    raw = _mapping(where, document[name])
    unknown = raw.keys() - {"stages"} - SECTIONS.keys()
    if unknown:
        raise UserError(f"{where}: unknown key {min(unknown)!r}; known: stages, {', '.join(SECTIONS)}")
    stages = _mapping(f"{where}.stages", raw.get("stages"))
    stages = {module: _mapping(f"{where}.stages.{module}", values) for module, values in stages.items()}
    sections = {key: _mapping(f"{where}.{key}", raw.get(key)) for key in SECTIONS}
    _override(where, stages, sections, overrides)
    return Pipeline(
        name=name,
        stages=tuple(_stage(where, module, values) for module, values in stages.items()),
        sections={
            key: _settings(f"{where}.{key}", importlib.import_module(module).SETTINGS, sections[key])
            for key, module in SECTIONS.items()
        },
    )


def pictures_of(work: Path) -> str:
    """Where the pictures of a work directory lie, as its `pipeline.yaml` says. Raises UserError where it does not."""
    file = work / "pipeline.yaml"
    document = _read(file)
    if isinstance(fetched := document.get("pictures"), str):
        return str(work.resolve() / fetched)
    if not isinstance(source := document.get("source"), str):
        raise UserError(f"{file}: does not say where the pictures lie (source); say it with --source")
    return source


def _read(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; give a YAML file of pipelines") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give a YAML file of pipelines") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist.
        raise UserError(f"{file}: not valid YAML: {error}") from None
    if not document:
        raise UserError(f"{file}: must map pipeline names to pipelines, is empty")
    return _mapping(str(file), document)


def _mapping(where: str, value: Any) -> dict[str, Any]:
    """A copy of a mapping of the file (none at all counts as an empty one)."""
    if not isinstance(value, dict | None):
        raise UserError(f"{where} = {value!r:.80}: must be a mapping (key: value)")
    for key in value or ():
        if not isinstance(key, str):
            raise UserError(f"{where}: the key {key!r} is not text; put it in quotes")
    return copy.deepcopy(value or {})  # Deep, for what YAML's anchors share is overridden in one place only.


def _override(where: str, stages: dict[str, Any], sections: dict[str, Any], overrides: Iterable[str]) -> None:
    targets: dict[str, Any] = {}
    for module, values in stages.items():
        short = module.rpartition(".")[2]
        if short in targets or short in sections:
            raise UserError(f"{where}.stages.{module}: the short name {short!r} is taken; rename the module")
        targets[short] = values
    targets |= sections
    for override in overrides:
        key, equals, text = override.partition("=")
        target, *path = key.split(".")
        if not equals or not path:
            raise UserError(f"--set {override}: write it as stage.setting=value, for example near.distance=2")
        if target not in targets:
            raise UserError(f"--set {override}: no stage {target!r}; there are: {', '.join(targets)}")
        values = targets[target]
        for step in path[:-1]:
            values = values.setdefault(step, {})
            if not isinstance(values, dict):
                raise UserError(f"--set {override}: {step!r} is {values!r}, not a group of settings")
        try:
            values[path[-1]] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise UserError(f"--set {override}: {text!r} is not a valid YAML value") from None


def _stage(where: str, module: str, values: dict[str, Any]) -> StageSpec:
    expected = "name a module with a constant STAGE, for example curate.ingest"
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{where}.stages: {module!r} is no module name; {expected}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{where}.stages: {module!r} cannot be imported ({error}); {expected}") from None
    stage = getattr(found, "STAGE", None)
    if not isinstance(stage, Stage):
        raise UserError(f"{where}.stages: {module!r} is not a stage; {expected}")
    return StageSpec(module, stage, _settings(f"{where}.stages.{module}", stage.settings, values))


def _settings(where: str, schema: type[Settings], values: dict[str, Any]) -> Settings:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [_explain(where, schema, problem) for problem in error.errors()]
        raise UserError("\n".join(lines)) from None


def _explain(where: str, schema: type[Settings], problem: Mapping[str, Any]) -> str:
    location = problem["loc"]
    key = ".".join([where, *map(str, location)])
    if problem["type"] == "missing":
        return f"{key}: must be given"
    if problem["type"] == "extra_forbidden":
        return f"{key} = {problem['input']!r}: no such setting; there are: {', '.join(_names(schema, location[:-1]))}"
    return f"{key} = {problem['input']!r}: {problem['msg']}"


def _names(schema: Any, groups: Iterable[Any]) -> list[str]:
    """The settings that a group within other settings has."""
    for group in groups:
        if field := schema.model_fields.get(group):
            kinds = (field.annotation, *get_args(field.annotation))  # X, X | None, list[X]
            schema = next(kind for kind in kinds if hasattr(kind, "model_fields"))
    return list(schema.model_fields)
