"""Phases of a run: what each sees, how often, and that one goes on where another stopped."""

from collections import Counter
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.corpus import Corpus
from shared.errors import UserError
from train.cache.reader import CacheReader
from train.cache.run import cache
from train.cache.settings import CacheSettings
from train.data.draws import draw
from train.data.loader import Loader
from train.data.phases import Phases, plan_phases
from train.model.config import DiTConfig
from train.settings import PhaseSettings, TrainSettings, ValidationSettings


@pytest.fixture
def scored(cached: Path) -> Path:
    """The cached dataset with the columns `score`, 0 to 10 by the order of the ids, and `weight`, of which one is 0."""
    (part,) = (cached / "curated").iterdir()
    table = pq.read_table(part)
    order = np.argsort(np.argsort(table["image_id"].to_pylist()))
    table = table.append_column("score", pa.array(order, pa.int64()))
    pq.write_table(table.append_column("weight", pa.array(order / 2)), part)
    return cached


def phases(work: Path, *parts: PhaseSettings, batch: int = 4, **others: object) -> Phases:
    run = TrainSettings(phases=parts, batch=batch, **others)  # type: ignore[arg-type]
    return plan_phases(work, CacheReader(work), run)


def test_a_phase_sees_the_pictures_of_its_condition(scored: Path):
    plan = phases(scored, PhaseSettings(), PhaseSettings(first=10, where="score >= 6"))
    assert {int(i) for step in range(10) for i in plan.at(step).samples(step)} == set(range(11))
    seen = np.concatenate([plan.at(step).samples(step) for step in range(10, 15)])
    assert np.bincount(seen, minlength=11).tolist() == [0] * 6 + [4] * 5
    assert plan.lines(15) == [
        "from step 0: 11 pictures at 64 px, 3.6 epochs",
        "from step 10: 5 pictures at 64 px, 4.0 epochs",
    ]
    assert len(plan.lines(10)) == 1


def test_pictures_are_seen_as_often_as_they_weigh(scored: Path):
    plan = phases(scored, PhaseSettings(balance="1 + score"), batch=11)
    seen = np.bincount(np.concatenate([plan.at(step).samples(step) for step in range(24)]), minlength=11)
    expected = 24 * 11 * np.arange(1, 12) / 66
    assert np.abs(seen - expected).max() <= 1


def test_phases_that_see_the_same_go_on_with_it(scored: Path):
    one = phases(scored, PhaseSettings())
    two = phases(
        scored, PhaseSettings(), PhaseSettings(first=3, learning_rate=1e-5), PhaseSettings(first=5, areas=(64,))
    )
    for step in range(9):
        assert two.at(step).samples(step).tolist() == one.at(step).samples(step).tolist()
        assert two.at(step).epochs(step) == one.at(step).epochs(step)
    assert [two.at(step).learning_rate for step in (2, 3)] == [2e-4, 1e-5]


HALVES = {None: ("", "g"), "image_id < '8'": ("", "8"), "image_id > '8'": ("8", "g")}
"""Conditions, and the ids between which they hold."""


@limits(max_examples=25, deadline=None)
@given(
    wheres=st.lists(st.sampled_from(list(HALVES)), min_size=1, max_size=5),
    lengths=st.lists(st.integers(1, 9), min_size=5, max_size=5),
    batch=st.integers(1, 30),
    seed=st.integers(0, 2**40),
)
def test_counts_never_differ_by_more_than_one_whatever_phases_lie_between(
    cached_once: Path, wheres: list[str | None], lengths: list[int], batch: int, seed: int
):
    firsts = list(accumulate(lengths, initial=0))
    stretches = list(zip(wheres, pairwise(firsts), strict=False))
    plan = phases(
        cached_once,
        *(PhaseSettings(first=first, where=where) for where, (first, _) in stretches),
        batch=batch,
        seed=seed,
    )
    reader = CacheReader(cached_once)
    ids = [reader.image_id(index) for index in range(reader.images)]
    for where, (low, high) in HALVES.items():
        steps = [step for one, ends in stretches if one == where for step in range(*ends)]
        counts = Counter(ids[index] for step in steps for index in plan.at(step).samples(step))
        seen = [counts.pop(one, 0) for one in ids if low <= one < high]
        assert sum(seen) == len(steps) * batch
        assert not counts  # No others.
        assert max(seen) - min(seen) <= 1


def test_phases_that_see_others_have_an_order_of_their_own(scored: Path):
    plan = phases(scored, PhaseSettings(), PhaseSettings(first=2, where="score < 20 AND score != 3"), batch=10)
    assert plan.at(2).samples(2).tolist() != plan.at(0).samples(0).tolist()


def test_held_out_pictures_are_never_seen(scored: Path):
    validation = ValidationSettings(share=0.4)
    plan = phases(scored, PhaseSettings(), PhaseSettings(first=20, where="score < 8"), validation=validation)
    reader = CacheReader(scored)
    held = [i for i in range(reader.images) if int(reader.image_id(i)[:8], 16) / 2**32 < 0.4]
    assert 0 < len(held) < 11
    seen = {int(i) for step in range(40) for i in plan.at(step).samples(step)}
    assert seen == set(range(11)) - set(held)


def test_losses_are_weighed_by_a_column(scored: Path):
    weights = phases(scored, PhaseSettings(), loss_weight="1 + score").loss_weights
    assert weights is not None
    assert weights.tolist() == pytest.approx([(1 + score) / 6 for score in range(11)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PhaseSettings(where="score > 99"), r"train\.phases\.0: no picture of the cache is left"),
        (PhaseSettings(where="beauty > 1"), r"train\.phases\.0\.where = 'beauty > 1': .*beauty(.|\n)*columns .*score"),
        (PhaseSettings(where="score >"), r"train\.phases\.0\.where = 'score >': "),
        (PhaseSettings(balance="weight"), r"balance: 1 of 11 pictures have no positive number there"),
        (PhaseSettings(areas=(128,)), r"areas \[64\], none of 128"),
    ],
)
def test_what_cannot_be_trained_on_is_named(scored: Path, settings: PhaseSettings, message: str):
    with pytest.raises(UserError, match=message):
        phases(scored, settings)


@pytest.mark.parametrize("firsts", [(), (1,), (0, 5, 5), (0, 3, 2)])
def test_phases_ascend_from_the_first_step(firsts: tuple[int, ...]):
    with pytest.raises(ValidationError, match="must begin with 0 and ascend"):
        TrainSettings(phases=tuple(PhaseSettings(first=first) for first in firsts))


def test_a_sample_draws_its_area(curated: Path, tiny_model: Path):
    cache(curated, Corpus(str(curated.parent / "pictures")), tiny_model, CacheSettings(areas=(32, 64), shard_rows=4))
    reader = CacheReader(curated)
    settings = TrainSettings(batch=600, phases=(PhaseSettings(areas=(32, 64)),))
    plan = plan_phases(curated, reader, settings)
    draws = draw(plan.at(0), settings, 0)
    large = [picture.area == 64 for picture in draws.readers]
    assert np.mean(large) == pytest.approx(0.5, abs=0.08)
    config = DiTConfig.from_folder(tiny_model / "transformer")
    small = settings.model_copy(update={"batch": 8, "pooled_loss": 0.0})
    (step,) = Loader(plan_phases(curated, reader, small), small, config).steps(0, 1)
    shown = [length for future in step.micro_batches for length in future.result().clean.image_lengths]
    pairs = zip(step.draws.readers, step.draws.pictures, strict=True)
    assert shown == [one.grid(int(index))[0] * one.grid(int(index))[1] for one, index in pairs]
