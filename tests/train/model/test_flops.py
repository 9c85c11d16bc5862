import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.train.model.support import CONFIG, batch_of, random_model
from train.model.config import DiTConfig
from train.model.flops import forward_flops, training_flops
from train.model.packing import layout_of

TEXT, GRID = 8, (4, 6)


@pytest.mark.parametrize(("pixels", "teraflops"), [(256, 5.1), (512, 17), (768, 37), (1024, 70), (1536, 190)])
def test_the_published_table(pixels: int, teraflops: float) -> None:
    work = training_flops(DiTConfig(cap_feat_dim=2304), text_tokens=125, image_tokens=(pixels // 16) ** 2)
    assert work / 1e12 == pytest.approx(teraflops, rel=0.06)


def test_equals_what_pytorch_counts() -> None:
    model, batch = random_model(), batch_of([(TEXT, GRID)])
    layout = layout_of(batch)
    image = GRID[0] * GRID[1]
    # Without fused kernels, whose counting differs between versions of PyTorch.
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):
        prediction = model(batch, layout)
    assert forward.get_total_flops() == forward_flops(CONFIG, TEXT, image)
    with FlopCounterMode(display=False) as backward, sdpa_kernel(SDPBackend.MATH):
        prediction.sum().backward()
    total = forward.get_total_flops() + backward.get_total_flops()
    assert total == pytest.approx(training_flops(CONFIG, TEXT, image), rel=0.05)
