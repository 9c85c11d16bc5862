"""Floating-point operations of a step: the work the model asks for, whatever a machine does beyond it.

Only matrix products count, a multiplication and an addition as two (arXiv 2204.02311, appendix B).
"""

from train.model.config import DiTConfig
from train.model.dit import SINUSOIDS


def forward_flops(config: DiTConfig, text_tokens: int, image_tokens: int) -> int:
    """Operations to predict one sample."""
    joint_tokens = text_tokens + image_tokens
    refiners, width = config.num_refiner_layers, config.time_dim
    modulations = (config.num_layers + refiners) * 4 * width * config.hidden_size
    time = SINUSOIDS * width + width**2 + modulations + width * config.hidden_size
    embedders = text_tokens * config.cap_feat_dim + image_tokens * (config.patch_dim + config.out_dim)
    return (
        2 * (time + embedders * config.hidden_size)
        + refiners * (_block(config, text_tokens) + _block(config, image_tokens))
        + config.num_layers * _block(config, joint_tokens)
    )


def training_flops(config: DiTConfig, text_tokens: int, image_tokens: int) -> int:
    """Operations to learn from one sample: backward is twice forward, and recomputing does not count."""
    return 3 * forward_flops(config, text_tokens, image_tokens)


def _block(config: DiTConfig, tokens: int) -> int:
    """Operations of one block on one sequence: linear layers by token, attention by pair of tokens."""
    width = config.hidden_size
    weights = 2 * width * (width + config.kv_dim) + 3 * width * config.ffn_dim
    return 2 * weights * tokens + 4 * width * tokens**2
