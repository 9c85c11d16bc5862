"""`tiny-lumina`: a miniature Lumina-Image-2.0 in the diffusers folder layout, with real classes and small sizes.

The autoencoder and the transformer are trained by this project and shipped in `demo/weights/` (see `demo.train_vae` and
`demo.train_transformer`): the transformer has learned to draw, but not a single name. Tokenizer and text encoder
are computed: their numbers come from a generator that is the same on every machine.
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Transformer2DModel
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer
from transformers.utils import logging

from demo.characters import (
    ACCESSORIES,
    BACKGROUNDS,
    CLOTHES,
    COLORS,
    EXPRESSIONS,
    FRAMINGS,
    HAIR_STYLES,
    POSES,
)
from shared.files import atomic_folder
from train.data.random import normal, stream_key
from train.model.config import DiTConfig

logging.disable_progress_bar()

WEIGHTS = Path(__file__).parent / "weights"
TEXT_DIM = 128
TRANSFORMER = DiTConfig(
    cap_feat_dim=TEXT_DIM,
    sample_size=16,
    hidden_size=160,
    num_layers=6,
    num_refiner_layers=1,
    num_attention_heads=5,
    num_kv_heads=1,
    multiple_of=32,
    axes_dim_rope=(8, 12, 12),
)
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
PHRASES = (
    "you are an assistant designed to generate anime images based on textual prompts. <prompt start>",
    "You Prompt Start>, A drawing of a girl boy with and wearing, 1girl 1boy solo hair eyes.",
)
"""Words beside those of the tags that are one token each."""


def write_tiny_lumina(folder: Path, *, pretrained: bool = True) -> Path:
    """Write the pipeline folder; with `pretrained=False` transformer and autoencoder have random weights."""
    with atomic_folder(folder) as temporary:
        tokenizer().save_pretrained(temporary / "tokenizer")
        text_encoder().save_pretrained(temporary / "text_encoder")
        FlowMatchEulerDiscreteScheduler(shift=6.0).save_pretrained(temporary / "scheduler")
        if pretrained:
            for part in ("vae", "transformer"):
                shutil.copytree(WEIGHTS / part, temporary / part)
        else:
            torch.manual_seed(0)
            AutoencoderKL.from_config(AutoencoderKL.load_config(WEIGHTS / "vae")).save_pretrained(temporary / "vae")
            config = json.loads(TRANSFORMER.to_json())
            Lumina2Transformer2DModel.from_config(config).save_pretrained(temporary / "transformer")
        index = {
            "_class_name": "Lumina2Pipeline",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "Gemma2Model"],
            "tokenizer": ["transformers", "GemmaTokenizer"],
            "transformer": ["diffusers", "Lumina2Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (temporary / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder


def tokenizer() -> GemmaTokenizer:
    """A byte-fallback BPE as Gemma's: the demo's words are tokens, anything else falls into letters and bytes."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL)}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for letter in "▁" + "".join(chr(code) for code in range(33, 127)):
        vocabulary[letter] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in words():
        left = "▁"
        for letter in word:
            if left + letter not in vocabulary:
                vocabulary[left + letter] = len(vocabulary)
                merges.append((left, letter))
            left += letter
    return GemmaTokenizer(
        vocab=vocabulary, merges=merges, padding_side="right", add_bos_token=True, model_max_length=512
    )


def words() -> list[str]:
    """The vocabulary's whole words."""
    lists = (COLORS, HAIR_STYLES, CLOTHES, ACCESSORIES, BACKGROUNDS, POSES, EXPRESSIONS, FRAMINGS)
    text = " ".join([*PHRASES, *(name for names in lists for name in names)]).replace("_", " ")
    return sorted({word.strip(".,") for word in text.split()})


def text_encoder() -> Gemma2Model:
    """A Gemma 2 with three layers and random, reproducible weights: enough to tell texts apart."""
    vocabulary = len(tokenizer())
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=TEXT_DIM,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=512,
        sliding_window=512,
    )
    model = Gemma2Model(config).eval()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            if parameter.dim() < 2:
                parameter.zero_()  # Gemma's norms multiply by 1 + weight.
                continue
            deviation = 0.3 if "embed" in name else parameter.shape[1] ** -0.5
            numbers = torch.from_numpy(normal(stream_key(2, index), parameter.numel()))
            parameter.copy_(numbers.view(parameter.shape) * deviation)
    return model
