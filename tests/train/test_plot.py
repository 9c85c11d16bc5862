"""The picture of runs: what is in its panels, not how they look."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from PIL import Image
from typer.testing import CliRunner

from shared.errors import UserError
from train.cli import app
from train.history import History, by_time, read_history, smoothed, window_of
from train.plot import COLOURS, draw, plot


def step(number: int, images: int = 4, **changes: Any) -> dict[str, Any]:
    return {
        "step": number,
        "images": images,
        "loss": 1 / (number + 1),
        "loss_pooled": 0.0,
        "loss_by_time": [number, None, 1.0],
        "grad_norm": 1.0,
        "learning_rate": 1e-4,
        "images_per_second": 2.0,
        "share_of_peak": 0.5,
        "share_waiting": 0.0,
        "memory": None,
    } | changes


def write(run: Path, **files: list[dict[str, Any]]) -> Path:
    run.mkdir(parents=True)
    for name, records in files.items():
        (run / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def panel(histories: list[History], title: str) -> Axes:
    return next(axes for axes in draw(histories).axes if axes.get_title("left") == title)


def lines(histories: list[History], title: str) -> dict[tuple[str, str], list[list[float]]]:
    """Points of the lines of a panel but the faint ones, by run and by what the legend says of them."""
    return {
        (histories[COLOURS.index(str(line.get_color()))].name, str(line.get_label())): line.get_xydata().tolist()
        for line in panel(histories, title).lines
        if line.get_alpha() is None
    }


def titles(history: list[History]) -> list[str]:
    return [axes.get_title("left") for axes in draw(history).axes]


def test_runs_are_drawn_over_the_samples_they_have_seen(tmp_path: Path):
    small = read_history(write(tmp_path / "small", metrics=[step(number, images=2) for number in range(6)]))
    large = read_history(write(tmp_path / "large", metrics=[step(number, images=6) for number in range(2)]))
    drawn = lines([small, large], "Learning rate")
    assert {run: points for (run, _), points in drawn.items()} == {
        "small": [[2, 1e-4], [4, 1e-4], [6, 1e-4], [8, 1e-4], [10, 1e-4], [12, 1e-4]],
        "large": [[6, 1e-4], [12, 1e-4]],
    }


def test_held_out_pictures_and_steps_not_taken_stand_where_they_happened(tmp_path: Path):
    looks = [
        {"step": 1, "loss": 2.0, "by_time": [1.0, 3.0], "series": {"tags 64 px": [1.0, 3.0]}},
        {"step": 3, "loss": 1.0, "by_time": [0.5, 1.5], "series": {"tags 64 px": [0.5, 1.5], "text 64 px": [2.0, 4.0]}},
    ]
    missed = [{"step": 2, "reason": "a spike"}]
    metrics = [step(number) for number in range(4)]
    run = read_history(write(tmp_path / "run", metrics=metrics, validation=looks, skipped=missed))
    assert lines([run], "Loss on held-out pictures")["run", "tags 64 px"] == [[8, 2.0], [16, 1.0]]
    by_time = lines([run], "Loss on held-out pictures by time, at the end")
    assert by_time == {
        ("run", "tags 64 px"): [[0.25, 0.5], [0.75, 1.5]],
        ("run", "text 64 px"): [[0.25, 2.0], [0.75, 4.0]],
    }
    ((seen, _),) = lines([run], "Norm of the gradient")["run", "not taken"]
    assert seen == 12


def test_a_spike_that_was_not_taken_is_in_no_line(tmp_path: Path):
    metrics = [
        step(number, grad_norm=1e6 if number == 5 else 1.0, loss=9.0 if number == 5 else 1.0) for number in range(40)
    ]
    run = read_history(write(tmp_path / "run", metrics=metrics, skipped=[{"step": 5, "reason": "a spike"}]))
    for title, says in (("Norm of the gradient", "steps taken"), ("Loss", "pictures")):
        assert {y for _, y in lines([run], title)["run", says]} == {1.0}
        assert panel([run], title).get_ylim()[1] < 9


def test_losses_by_time_compare_where_all_runs_have_seen_as_much(tmp_path: Path):
    long = read_history(write(tmp_path / "long", metrics=[step(number, images=2) for number in range(1000)]))
    short = read_history(write(tmp_path / "short", metrics=[step(number, images=10) for number in range(20)]))
    drawn = lines([long, short], "Loss by time")
    # 200 samples are 100 steps of 2, or 20 of 10; in the first part of the times the loss is the number of the step.
    last = {run: points[0][1] for (run, says), points in drawn.items() if says == "last tenth of them"}
    assert last == {"long": np.mean(range(90, 100)), "short": np.mean(range(18, 20))}
    first = {run: points[0][1] for (run, says), points in drawn.items() if says == "first tenth of 200 samples"}
    assert first == {"long": np.mean(range(10)), "short": np.mean(range(2))}


def test_a_style_means_the_same_in_all_runs(tmp_path: Path):
    look = {"step": 0, "loss": 1.0, "by_time": [1.0]}
    both = look | {"series": {"tags": [1.0], "text": [2.0]}}
    one, two = (
        read_history(write(tmp_path / name, metrics=[step(0)], validation=[found]))
        for name, found in (("one", both), ("two", look | {"series": {"text": [3.0]}}))
    )
    for title in ("Loss on held-out pictures", "Loss on held-out pictures by time, at the end"):
        axes = panel([one, two], title)
        styles = {(line.get_label(), line.get_linestyle()) for line in axes.lines}
        assert styles == {("tags", "-"), ("text", "--")}
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["tags", "text"]
    (key,) = draw([one, two]).legends
    assert [text.get_text() for text in key.get_texts()] == ["one: 1 steps, 4 samples", "two: 1 steps, 4 samples"]


def test_a_panel_leaves_out_few_steps_and_nothing_of_the_smoothed_line(tmp_path: Path):
    metrics = [step(number, loss=50.0 if number == 500 else 1.0 + number % 2) for number in range(1000)]
    run = read_history(write(tmp_path / "run", metrics=metrics))
    low, high = panel([run], "Loss").get_ylim()
    assert 0.8 < low < 1
    assert max(y for _, y in lines([run], "Loss")["run", "pictures"]) < high < 10
    few = read_history(write(tmp_path / "few", metrics=[step(number) for number in range(20)]))
    assert panel([few], "Loss").get_ylim()[1] > 1, "all of 20 steps are seen"


def test_a_run_without_one_finite_number_is_drawn(tmp_path: Path):
    nothing = {"loss": None, "loss_pooled": None, "grad_norm": None, "loss_by_time": [None, None]}
    run = read_history(write(tmp_path / "run", metrics=[step(0, **nothing), step(1, **nothing)]))
    assert plot([tmp_path / "run"], tmp_path / "plot.png").exists()
    assert len(titles([run])) == 6


def test_panels_without_numbers_are_left_out(tmp_path: Path):
    run = read_history(write(tmp_path / "run", metrics=[step(0), step(1)]))
    assert titles([run]) == [
        "Loss",
        "Loss by time",
        "Norm of the gradient",
        "Learning rate",
        "Images per second",
        "Share of the GPUs' peak",
    ]
    assert list(lines([run], "Loss")) == [("run", "pictures")]
    full = read_history(write(tmp_path / "gpu", metrics=[step(0, memory=2.0**30, loss_pooled=0.5)]))
    assert titles([full])[-1] == "Memory of a GPU, GiB"
    assert list(lines([full], "Loss")) == [("gpu", "pictures"), ("gpu", "pooled")]


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=40), st.integers(0, 20))
def test_smoothing_is_a_mean_of_what_is_there(values: list[float], window: int):
    found = smoothed(np.array(values), window)
    half = (min(2 * (window // 2) + 1, len(values)) - 1) // 2
    assert len(found) == len(values)
    if len(values) % 2 or half == window // 2:
        for number, value in enumerate(found):
            near = [x for x in values[max(0, number - half) : number + half + 1] if np.isfinite(x)]
            assert value == pytest.approx(np.mean(near) if near else np.nan, rel=1e-6, abs=1e-3, nan_ok=True)


def test_a_long_run_is_smoothed_over_more_steps():
    assert [window_of(steps) for steps in (1, 8, 20, 100, 26_500)] == [0, 2, 5, 10, 530]


def test_times_without_a_sample_have_no_loss():
    assert by_time([step(2), step(4)]).tolist() == [3.0, pytest.approx(float("nan"), nan_ok=True), 1.0]


def test_a_record_that_was_cut_off_is_left_out(tmp_path: Path):
    run = write(tmp_path / "run", metrics=[step(0), step(1)])
    file = run / "metrics.jsonl"
    file.write_text(file.read_text()[:-9])
    assert len(read_history(run).seen) == 1


def test_a_folder_without_records(tmp_path: Path):
    with pytest.raises(UserError, match=r"runs/none: no step is recorded there"):
        plot([tmp_path / "runs" / "none"], tmp_path / "plot.png")


def test_the_command_draws_several_runs(tmp_path: Path):
    for name in ("one", "two"):
        write(tmp_path / "runs" / name, metrics=[step(number) for number in range(30)])
    done = CliRunner().invoke(app, ["plot", "--work", str(tmp_path), "--name", "one", "--name", "two"])
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "runs" / "one" / "plot.png") as picture:
        assert picture.width > 1000
