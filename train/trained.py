"""What a checkpoint holds of the model: all of its weights in the diffusers layout, or its adapters in peft's."""

from pathlib import Path

from torch import Tensor

from train.model.adapter_files import PEFT_FILE, PEFT_PREFIX, read_weights, save_peft_config
from train.model.adapters import adapter_of, named
from train.model.config import CONFIG_FILE
from train.model.dit import Lumina2DiT
from train.model.names import State, from_diffusers, to_diffusers
from train.model.weights import WEIGHTS_FILE, load_state
from train.settings import TrainSettings


class Trained:
    """The weights that learn, in files; those that do not are beside them."""

    def __init__(self, model: Lumina2DiT, settings: TrainSettings) -> None:
        self._model, self._lora, self._base = model, settings.lora, settings.weights

    @property
    def sharded(self) -> bool:
        """Whether each rank has a share of the weights. Adapters are small: the first has them all."""
        return self._lora is None

    def file(self, suffix: str = "") -> str:
        """Where the tensors are within a checkpoint; the suffix tells averages from raw weights."""
        return f"adapter{suffix}/{PEFT_FILE}" if self._lora else f"transformer{suffix}/{WEIGHTS_FILE}"

    def tensors(self, weights: State, is_first: bool) -> dict[str, Tensor]:
        """Weights by the names of the file. The first rank has besides those that do not learn."""
        if self._lora is not None:
            return named(adapter_of(weights, self._lora.alpha), PEFT_PREFIX)
        still = {name: x for name, x in self._model.named_parameters() if is_first and not x.requires_grad}
        return to_diffusers({**still, **weights})

    def describe(self, checkpoint: Path) -> list[Path]:
        """Write what readers want to know beside the tensors; returns these files."""
        files = []
        for suffix in ("", "_ema"):
            folder = (checkpoint / self.file(suffix)).parent
            if self._lora is not None:
                learning = {name: x for name, x in self._model.named_parameters() if x.requires_grad}
                files.append(save_peft_config(adapter_of(learning, self._lora.alpha), folder, self._base))
            else:
                (folder / CONFIG_FILE).write_text(self._model.config.to_json(), encoding="utf-8")
                files.append(folder / CONFIG_FILE)
        return files

    def load(self, checkpoint: Path, suffix: str = "") -> dict[str, Tensor]:
        """All of the weights, by the model's own names. Raises UserError where the checkpoint holds something else."""
        if self._lora is not None:
            return read_weights(checkpoint / f"adapter{suffix}", self._lora.alpha / self._lora.rank)
        return from_diffusers(load_state(checkpoint / f"transformer{suffix}"))
