"""What a checkpoint holds of the model: all of its weights in the diffusers layout, or its adapters in peft's."""

from pathlib import Path

from torch import Tensor

from train.model.adapter_files import read_weights, save_adapter
from train.model.dit import Lumina2DiT
from train.model.names import State, from_diffusers
from train.model.weights import load_state, save_transformer
from train.settings import TrainSettings


class Trained:
    """Writes and reads the weights that learn, by the model's own names; those that do not are written beside them."""

    def __init__(self, model: Lumina2DiT, settings: TrainSettings) -> None:
        self._model, self._lora, self._base = model, settings.lora, settings.weights

    def save(self, weights: State, checkpoint: Path, suffix: str = "") -> None:
        """Write `transformer` or `adapter`, with the suffix, into the folder of a checkpoint."""
        if self._lora is not None:
            save_adapter(weights, self._lora.alpha, checkpoint / f"adapter{suffix}", self._base)
        else:
            whole = {**self._model.state_dict(), **weights}
            save_transformer(whole, self._model.config, checkpoint / f"transformer{suffix}")

    def load(self, checkpoint: Path, suffix: str = "") -> dict[str, Tensor]:
        """What `save` wrote, by the model's own names. Raises UserError where the checkpoint holds something else."""
        if self._lora is not None:
            return read_weights(checkpoint / f"adapter{suffix}", self._lora.alpha / self._lora.rank)
        return from_diffusers(load_state(checkpoint / f"transformer{suffix}"))
