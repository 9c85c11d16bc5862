"""`train audit`: whether a run saw the samples of its plan, by the receipts of its steps."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from shared.errors import UserError
from train.cache.reader import CacheReader
from train.data.phases import plan_phases
from train.data.plan import receipt
from train.data.selection import held_out
from train.records import METRICS, read
from train.settings import TrainSettings


@dataclass(frozen=True)
class Audit:
    """What the records of a run say."""

    steps: int
    samples: int
    """Seen in all steps together."""
    fewest: int
    """How often a picture was seen, at least."""
    most: int
    problems: list[str]
    """Steps that are missing or saw other samples than planned, a line each."""


def audit(work: Path, name: str) -> Audit:
    """Replay the plan of the run `name` beside its metrics. Raises UserError where there is no run."""
    folder = work / "runs" / name
    records = read(folder / METRICS)
    if not records:
        raise UserError(f"{folder}: no step is recorded there; give the --name of a run")
    settings = TrainSettings.model_validate(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    reader = CacheReader(work)
    phases = plan_phases(work, reader, settings)
    seen, problems = np.zeros(reader.images, np.int64), []
    for step, record in enumerate(records):
        planned = phases.at(step).samples(step)
        np.add.at(seen, planned, 1)
        if record["step"] != step:
            problems.append(f"line {step + 1} of metrics.jsonl: step {record['step']} where {step} belongs")
        elif record["samples"] != receipt(planned):
            problems.append(f"step {step}: saw samples of receipt {record['samples']}, planned is {receipt(planned)}")
    seen = seen[held_out(reader, settings.validation.share) :]
    return Audit(len(records), int(seen.sum()), int(seen.min()), int(seen.max()), problems)
