import pytest
import torch

from tests.train.model.support import relative
from train.model.rope import check_positions, rotate, rotation

AXES = (32, 32, 32)
LENGTHS = (300, 512, 512)


def test_equals_a_complex_product() -> None:
    positions = torch.tensor([[0, 0, 0], [299, 511, 0], [7, 30, 511]])
    x = torch.randn(3, 4, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frequencies = 10_000.0 ** -(torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    angles = (positions[:, :, None] * frequencies).flatten(1)[:, None]
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    assert relative(rotate(x, rotation(positions, AXES)), torch.view_as_real(turned).flatten(-2)) < 1e-6


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 96, generator=torch.Generator().manual_seed(0)).unbind()
    scores = [
        (rotate(q, rotation(torch.tensor([at]), AXES)) * rotate(k, rotation(torch.tensor([to]), AXES))).sum()
        for at, to in (((3, 5, 8), (1, 9, 2)), ((203, 405, 508), (201, 409, 502)))
    ]
    assert torch.isclose(scores[0], scores[1], rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    x = torch.ones(1, 2, 96, dtype=dtype)
    assert rotate(x, rotation(torch.zeros(1, 3, dtype=torch.int32), AXES)).dtype == dtype


def test_the_largest_sample_fits() -> None:
    check_positions([299], [(512, 512)], LENGTHS)


@pytest.mark.parametrize(
    ("text", "grid", "message"),
    [
        (300, (1, 1), "300 tokens.*299.*max_tokens"),
        (1, (513, 1), "513 rows.*512.*scale it down"),
        (1, (1, 600), "600 columns.*512.*scale it down"),
    ],
)
def test_what_lies_beyond_the_axes_is_refused(text: int, grid: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_positions([3, text], [(2, 2), grid], LENGTHS)
