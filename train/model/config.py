"""The shape of a Lumina-Image-2.0 transformer: the fields of diffusers' `transformer/config.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

CONFIG_FILE = "config.json"
CLASS_NAME = "Lumina2Transformer2DModel"


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of the model under diffusers' names, with its defaults. Impossible ones are ValueErrors."""

    cap_feat_dim: int
    """Width of a caption token, 2304 for Gemma-2-2B. diffusers' default fits no released model: none here."""
    sample_size: int = 128
    """Side of the latent the model was made for. Kept for diffusers' sake; nothing depends on it."""
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int | None = None
    """None stands for as many as come in."""
    hidden_size: int = 2304
    num_layers: int = 26
    """Joint blocks, over text and image."""
    num_refiner_layers: int = 2
    """Blocks that see only the text, and as many that see only the image, before the joint ones."""
    num_attention_heads: int = 24
    num_kv_heads: int = 8
    multiple_of: int = 256
    """The feed-forward width is rounded up to a multiple of this."""
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    scaling_factor: float = 1.0
    """Read by no implementation; anything but 1 is refused rather than ignored."""
    axes_dim_rope: tuple[int, int, int] = (32, 32, 32)
    """Channels of a head that turn with the position in the text, the row and the column."""
    axes_lens: tuple[int, int, int] = (300, 512, 512)
    """Positions that exist on each of the three axes."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads")
        if self.num_attention_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_attention_heads} attention heads cannot share {self.num_kv_heads} key-value heads"
            )
        if len(self.axes_dim_rope) != 3 or len(self.axes_lens) != 3:
            raise ValueError(f"axes_dim_rope {self.axes_dim_rope} and axes_lens {self.axes_lens} need three axes")
        if sum(self.axes_dim_rope) != self.head_dim or any(width % 2 for width in self.axes_dim_rope):
            raise ValueError(
                f"axes_dim_rope {self.axes_dim_rope} must be even and sum to the head width {self.head_dim}"
            )
        if self.scaling_factor != 1.0:
            raise ValueError(f"scaling_factor {self.scaling_factor} is not supported, only 1.0")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_dim(self) -> int:
        """Channels of all key heads together, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def ffn_dim(self) -> int:
        """Inner width of the SwiGLU: 4 x hidden x multiplier, rounded up (diffusers' LuminaFeedForward)."""
        inner = 4 * self.hidden_size
        if self.ffn_dim_multiplier is not None:
            inner = int(self.ffn_dim_multiplier * inner)
        return -(-inner // self.multiple_of) * self.multiple_of

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return min(self.hidden_size, 1024)

    @property
    def patch_dim(self) -> int:
        """Numbers in one image token as it comes in."""
        return self.patch_size**2 * self.in_channels

    @property
    def out_dim(self) -> int:
        """Numbers in one image token as it goes out."""
        return self.patch_size**2 * (self.out_channels or self.in_channels)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Take diffusers' dictionary but for its private keys (`_class_name`); unknown keys are errors."""
        # JSON has no tuples.
        public: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if not key.startswith("_")
        }
        known = {field.name for field in fields(cls)}
        if unknown := sorted(public.keys() - known):
            raise ValueError(f"unknown transformer settings {unknown}; known are {sorted(known)}")
        if "cap_feat_dim" not in public:
            raise ValueError("the transformer settings lack cap_feat_dim, the width of a caption token")
        return cls(**public)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read `config.json` of a folder in the diffusers layout; a ValueError names the file."""
        path = folder / CONFIG_FILE
        values = json.loads(path.read_text(encoding="utf-8"))
        if (name := values.get("_class_name", CLASS_NAME)) != CLASS_NAME:
            raise ValueError(f"{path} describes a {name}; only {CLASS_NAME} is supported")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_json(self) -> str:
        """The text of `config.json` that diffusers' `from_pretrained` reads."""
        return json.dumps({"_class_name": CLASS_NAME} | asdict(self), indent=2, sort_keys=True) + "\n"
