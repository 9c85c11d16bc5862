import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.model.support import CONFIG
from train.model.config import DiTConfig

RELEASED: dict[str, Any] = {
    "_class_name": "Lumina2Transformer2DModel",
    "_diffusers_version": "0.33.0.dev0",
    "axes_dim_rope": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "cap_feat_dim": 2304,
    "ffn_dim_multiplier": None,
    "hidden_size": 2304,
    "in_channels": 16,
    "multiple_of": 256,
    "norm_eps": 1e-05,
    "num_attention_heads": 24,
    "num_kv_heads": 8,
    "num_layers": 26,
    "num_refiner_layers": 2,
    "out_channels": None,
    "patch_size": 2,
    "sample_size": 128,
    "scaling_factor": 1.0,
}


def test_the_released_config_is_the_default_and_has_the_published_sizes() -> None:
    config = DiTConfig.from_dict(RELEASED)
    assert config == DiTConfig(cap_feat_dim=2304)
    assert (config.head_dim, config.ffn_dim, config.time_dim, config.patch_dim) == (96, 9216, 1024, 64)


def test_the_feed_forward_width_is_multiplied_then_rounded_up() -> None:
    assert DiTConfig.from_dict(RELEASED | {"ffn_dim_multiplier": 0.67}).ffn_dim == 6400


def test_round_trip_through_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    assert DiTConfig.from_folder(tmp_path) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": False}, "unknown.*qk_norm"),
        ({"scaling_factor": 0.5}, "scaling_factor 0.5"),
        ({"axes_dim_rope": [32, 32, 16]}, "sum to the head width 96"),
        ({"axes_dim_rope": [31, 32, 33]}, "even"),
        ({"axes_lens": [300, 512]}, "three axes"),
        ({"num_kv_heads": 7}, "24 attention heads cannot share 7"),
        ({"num_attention_heads": 25}, "2304 does not divide into 25"),
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_files_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASED | change))
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        DiTConfig.from_folder(tmp_path)
