"""The weights that learn beside those that compute."""

import pytest
import torch

from tests.train.model.support import random_model
from train.precision import MasterWeights
from train.ranks import Ranks


@pytest.mark.parametrize("computing", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masters", [torch.float32, torch.bfloat16])
def test_the_model_computes_with_the_masters_and_for_a_while_with_others(computing: torch.dtype, masters: torch.dtype):
    model = random_model()
    exact = {name: x.detach().clone() for name, x in model.named_parameters()}
    found = MasterWeights(model, computing, Ranks(), masters=masters)
    assert {x.dtype for x in found.weights.values()} == {masters}
    assert {x.dtype for x in model.parameters()} == {computing}

    def computes_with(values: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(x, values[name].to(computing)) for name, x in model.named_parameters())

    stored = {name: x.to(masters) for name, x in exact.items()}
    assert all(torch.equal(x, stored[name]) for name, x in found.weights.items())
    assert computes_with(stored)
    with found.computing_with({name: x + 1 for name, x in exact.items()}):
        assert computes_with({name: x + 1 for name, x in exact.items()})
    assert computes_with(stored)
    with torch.no_grad():
        for weight in found.weights.values():
            weight.mul_(2)
    found.publish()
    assert computes_with({name: 2 * x for name, x in stored.items()})
    same = {x.data_ptr() for x in model.parameters()} & {x.data_ptr() for x in found.weights.values()}
    assert bool(same) == (masters == computing)
