"""Settings of `train`: the section `train` of a pipeline."""

from itertools import pairwise
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from shared.settings import Settings

Precision = Literal["bfloat16", "float8"]
"""Of the large products of the joint blocks."""
Recompute = Literal["nothing", "cheap", "most", "everything"]
"""In each block: nothing that takes time; norms, rotations and SwiGLU, whose inputs are kept; the widest product too;
everything."""
ExportFormat = Literal["diffusers", "comfyui", "diffusers-lora", "comfyui-lora"]
"""A pipeline folder, or the transformer in one file; of adapters alone a folder, or one file."""
ExportDtype = Literal["bfloat16", "float32"]


class OptimizerSettings(Settings):
    """AdamW, as in the official run."""

    learning_rate: PositiveFloat = 2e-4
    rates: dict[str, PositiveFloat] = Field(default={})
    """Factors on the learning rate of parts, as train.freeze names them: {text: 0.1, layers.0-12: 0.5}."""
    warmup: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How it falls from there to 0 at the last step, or does not."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-15
    weight_decay: float = Field(default=0.0, ge=0)
    """Of matrices. The weights of norms and biases do not decay."""
    states: Literal["float32", "int8"] = "float32"
    """How the two moments of every weight are stored. int8, in blocks with a scale each (arXiv 2110.02861), leaves 6 of
    8 bytes per weight to micro-batches."""
    clip: PositiveFloat = 2.0
    """Largest norm of the gradient of all parameters together."""


class PhaseSettings(Settings):
    """A stretch of training, which ends where the next one begins."""

    first: int = Field(default=0, ge=0)
    """Its first step."""
    areas: tuple[PositiveInt, ...] = ()
    """Areas of the cache (the sides of squares); a sample draws one of them. Empty: the largest."""
    where: str | None = None
    """Which pictures are seen: a condition in SQL on the columns of the curated dataset, such as `quality >= 90`."""
    balance: str | None = None
    """How often a picture is seen, relative to the others: a number in SQL, such as `weight`, the column of the stage
    `balance`."""
    learning_rate: PositiveFloat | None = None
    """Instead of the optimiser's."""


class ValidationSettings(Settings):
    """The loss on pictures that are never trained on."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """Of all pictures, chosen by their ids: the same ones in every run, however the dataset grows."""
    every: PositiveInt = 1000
    """Steps between two validations; one more is made at the end."""
    images: PositiveInt = 256
    """At most so many of the pictures are looked at."""
    times: PositiveInt = 8
    """At so many times each, evenly spread."""
    captions: tuple[str, ...] = ()
    """Caption variants for which the loss is told apart, on the pictures that have them all. Empty: each picture is
    shown with its first one."""
    areas: tuple[PositiveInt, ...] = ()
    """Areas of the cache for which the loss is told apart. Empty: the largest."""


class CheckpointSettings(Settings):
    """When checkpoints are written, and which ones are kept."""

    every: PositiveInt = 500
    """Steps between two; one more is written at the end."""
    keep_last: PositiveInt = 3
    keep_every: PositiveInt | None = None
    """Besides these, checkpoints of steps that are multiples of it are kept."""


class GuardSettings(Settings):
    """Which steps are not taken: those whose loss or gradient is not finite, and spikes of the gradient."""

    norm_factor: float = Field(default=10.0, gt=1)
    """A spike: a norm of the gradient of more than so many times the median of recent ones."""
    window: PositiveInt = 100
    """Steps taken whose norms are the recent ones. Before a quarter of them there are no spikes."""
    patience: PositiveInt = 10
    """Steps not taken in a row that end the run."""


class DrawSettings(Settings):
    """How pictures are drawn from noise."""

    steps: PositiveInt = 50
    guidance: float = Field(default=4.0, ge=1)
    guidance_until: float = Field(default=0.25, ge=0, le=1)
    """Time (0 noise, 1 data) from which on the prompt alone is followed."""
    shift: PositiveFloat = 6.0
    """Shift of the sampler's times towards noise."""
    seed: int = 0
    """Of the first picture; every further one has the next."""


class SampleSettings(DrawSettings):
    """The grids drawn during training, with the averaged weights."""

    every: PositiveInt = 500
    """Steps between two grids; one more is drawn at the end."""
    prompts: tuple[str, ...] = ()
    """What to draw. Empty: the captions of the first 8 pictures of the cache."""
    sizes: tuple[str, ...] = ()
    """Every prompt is drawn at each of them: width x height in pixels, as `832x1216`, multiples of 16 (of the model's
    patches, in pixels). Empty: the square of the cache's largest area."""


LoraTarget = Literal["attention", "feed_forward"]


class LoraSettings(Settings):
    """Adapters that learn in place of the model's own weights (arXiv 2106.09685)."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 16.0
    """The adapters' share is multiplied by alpha / rank."""
    targets: tuple[Literal["attention", "feed_forward"], ...] = Field(
        default=("attention", "feed_forward"), min_length=1
    )
    """Which matrices of every block have one."""
    init: str | None = None
    """An adapter to go on from: a file or a folder in the naming of peft, diffusers or ComfyUI, of the same rank and
    targets."""


class TrainSettings(Settings):
    """How the transformer is finetuned. The defaults are the numbers of the run this project follows."""

    steps: PositiveInt = 26_500
    batch: PositiveInt = 768
    """Samples of one optimiser step, on all ranks together."""
    token_budget: PositiveInt = 16_384
    """Most tokens (text and image) of one micro-batch on one rank: raise it until the memory is full."""
    seed: int = 0
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of samples that are shown the empty caption."""
    captions: dict[str, PositiveFloat] = Field(default={})
    """How often each caption variant is drawn, relative to the others; those not named are never drawn where a picture
    has one that is. Empty: all equally often."""
    pooled_loss: float = Field(default=1.0, ge=0)
    """Weight of a second loss, on the latent pooled 4 x 4 to 1, with a time and noise of its own, as in the official
    run. It keeps the composition in view, for a tenth more tokens."""
    loss_weight: str | None = None
    """A number in SQL on the columns of the curated dataset by which a picture's loss is multiplied."""
    phases: tuple[PhaseSettings, ...] = (PhaseSettings(),)
    """What is seen from which step on."""
    ema: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the averaged weights per step. The average forgets its start sooner in the first steps."""
    ema_offload: bool = False
    """Keep the average in the host's memory, updated while the next step is computed: 4 bytes less per weight on the
    GPU."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Start from the weights in the model folder, or from scratch."""
    weights: str | None = None
    """Start from these weights in place of the model folder's: a transformer in the diffusers layout, with or without
    its pipeline; a checkpoint; a .safetensors file in the naming of diffusers, of the original or of ComfyUI; or a
    hub name."""
    freeze: tuple[str, ...] = ()
    """Parts that do not learn: text, image, time, layers, output; or some layers, as layers.3 or layers.0-12."""
    lora: LoraSettings | None = None
    """Train adapters and leave the model as it is."""
    precision: Precision = "bfloat16"
    """What a GPU computes the large products in; a CPU has float32."""
    masters: Literal["float32", "bfloat16"] = "float32"
    """How the weights that learn are stored. bfloat16, rounded stochastically after every step, leaves 4 bytes per
    weight to micro-batches; gradients, the optimiser's arithmetic and the average are float32 either way."""
    recompute: Recompute | Literal["auto"] = "auto"
    """What is computed a second time in the backward pass, for memory: norms, rotations and SwiGLU (`cheap`), the
    widest product of each block too (`most`), or `everything`; `auto` takes the fastest that fits into the GPU's
    memory. On a CPU, where nothing is compiled, `cheap` and `most` are `nothing`."""
    optimizer: OptimizerSettings = OptimizerSettings()
    samples: SampleSettings = SampleSettings()
    validation: ValidationSettings = ValidationSettings()
    guard: GuardSettings = GuardSettings()
    log_every: PositiveInt = 10
    """Steps between two lines of output; metrics.jsonl has every step."""
    checkpoints: CheckpointSettings = CheckpointSettings()

    @field_validator("phases")
    @classmethod
    def _ordered(cls, phases: tuple[PhaseSettings, ...]) -> tuple[PhaseSettings, ...]:
        firsts = [phase.first for phase in phases]
        if firsts[:1] != [0] or any(one >= other for one, other in pairwise(firsts)):
            raise ValueError(f"the first steps of the phases must begin with 0 and ascend; they are {firsts}")
        return phases


SETTINGS = TrainSettings
