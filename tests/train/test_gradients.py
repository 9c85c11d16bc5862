"""Sums of gradients: those of one process, however ranks share the micro-batches, sent while others are computed."""

import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.summed import STEPS, summed
from tests.train.test_processes import free_port

ALONE = tuple((tuple(chain(*step)),) for step in STEPS)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("summed")
    command = [sys.executable, "-m", "tests.train.summed", "2", free_port(), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=True)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("masters", [torch.float32, torch.bfloat16])
def test_two_processes_have_the_sums_and_the_weights_of_one(ranks: list[dict[str, Any]], masters: torch.dtype):
    alone: Any = summed(ALONE, masters)
    shares = [rank[str(masters)] for rank in ranks]
    assert not shares[0]["weights"].keys() & shares[1]["weights"].keys()
    for step, expected in enumerate(alone["gradients"]):
        together = shares[0]["gradients"][step] | shares[1]["gradients"][step]
        assert expected.keys() == {name for name, gradient in together.items() if gradient.any()}
        assert all(torch.equal(together[name], gradient) for name, gradient in expected.items())
    together = shares[0]["weights"] | shares[1]["weights"]
    assert all(torch.equal(together[name], weight) for name, weight in alone["weights"].items())
    assert together.keys() == alone["weights"].keys()


def test_all_ranks_send_in_one_order(ranks: list[dict[str, Any]]):
    one, other = (rank["torch.float32"]["sent"] for rank in ranks)
    assert one == other
    assert [len(step) for step in one] == [12, 12, 12]
    assert {owner for _, owner in one[0]} == {0, 1}


def test_sums_are_sent_during_the_last_backward_pass_and_not_before(ranks: list[dict[str, Any]]):
    # Weights and biases of four layers. The layer that only some batches need is sent when the step ends.
    assert [rank["torch.float32"]["early"] for rank in ranks] == [[8, 0, 8, 8], [0, 0, 8, 8]]
