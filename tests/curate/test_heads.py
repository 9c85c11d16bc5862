"""Aesthetic heads: the real weights and golden scores of LAION, and stacks of layers against PyTorch."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from curate.heads import load_head
from shared.errors import UserError

V1 = [-2.458, -0.138, 1.895, 3.585, 5.100, 6.470, 7.787, 9.048, 10.226, 11.304]
V2 = [1.655, 2.359, 3.070, 3.672, 4.238, 4.701, 5.073, 5.365, 5.577, 5.747]


@pytest.mark.parametrize(
    ("file", "golden"),
    [
        ("laion_aesthetic_v1/sa_0_4_vit_l_14_linear.pth", V1),
        ("improved_aesthetic_v2/sac+logos+ava1-l14-linearMSE.pth", V2),
    ],
)
def test_golden_scores_of_laion(file, golden, shared_data):
    folder = shared_data / "weights/laion_aesthetic_v1/vit_l_14_embeddings"
    embeddings = np.stack([np.load(folder / f"rating{rating}.npy").ravel() for rating in range(10)])
    scores = load_head(shared_data / "weights" / file, 768).score(embeddings.astype(np.float16))
    np.testing.assert_allclose(scores, golden, atol=4e-3)  # What float16 takes.
    np.testing.assert_allclose(load_head(shared_data / "weights" / file, 768).score(embeddings), golden, atol=6e-4)


def v25() -> nn.Sequential:
    """The layout of V2.5, narrower."""
    widths, layers = (36, 32, 16, 8, 4, 1), []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.Dropout(0.5)]
    return nn.Sequential(*layers[:-1]).eval()


@pytest.mark.parametrize("prefix", ["", "layers.", "scoring_head."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_stack_of_layers_is_what_pytorch_computes(prefix, suffix, tmp_path):
    model, path = v25(), tmp_path / f"head{suffix}"
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    embeddings = torch.randn(20, 36).half()
    expected = model.double()(embeddings.double()).squeeze(1).detach().numpy()
    np.testing.assert_allclose(load_head(path, 36).score(embeddings.numpy()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.ones(1, 5)}, r"from the embedding's 36 numbers to one, has weight \(1, 5\)"),
        ({"weight": torch.ones(2, 36)}, "has weight"),
        ({"0.weight": torch.ones(8, 36), "2.weight": torch.ones(1, 9)}, "has 0.weight"),
        ({"bias": torch.ones(1)}, "has nothing"),
        (nn.Linear(36, 1), "cannot be read as weights"),  # A pickle of a whole module would run its code.
    ],
)
def test_what_is_no_head(state, message, tmp_path):
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(UserError, match=message):
        load_head(tmp_path / "head.pth", 36)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.pth: cannot be read"):
        load_head(tmp_path / "gone.pth", 36)
