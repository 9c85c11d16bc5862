"""Descriptions by a model on this machine, through Transformers: Qwen-VL, LLaVA (JoyCaption), Idefics, Florence-2.

Weights are read from safetensors alone, and code that comes with a model is never run.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError
from PIL import Image
from pydantic import Field, NonNegativeFloat, PositiveInt

from caption.check import Problem
from caption.drafts import Answer, Described, Draft, Order, Preparer, Row
from shared.engine import decoders_named
from shared.errors import UserError
from shared.progress import console
from shared.settings import Settings
from shared.worklist import Shard

if TYPE_CHECKING:
    import torch


class LocalSettings(Settings):
    """A model, and how it is asked."""

    HOW = frozenset({"batch"})

    model: str = Field(min_length=1)
    """A folder, or a name of the hub. One without a chat template (Florence-2) gets templates as they are: there, they
    are task tokens such as <MORE_DETAILED_CAPTION>."""
    batch: PositiveInt = 16
    """Texts that are written together; halved where memory ends."""
    max_tokens: PositiveInt = 512
    """Tokens that an answer may have."""
    temperature: NonNegativeFloat = 0.6
    """0 always takes the most probable word; an attempt at the same text would then fail the same way."""


class Model:
    """A model on the first GPU in bfloat16, or on the CPU in float32."""

    def __init__(self, settings: LocalSettings) -> None:
        """Raises UserError where there is no such model."""
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        try:
            self._processor: Any = AutoProcessor.from_pretrained(settings.model, trust_remote_code=False)
            self._model: Any = AutoModelForImageTextToText.from_pretrained(
                settings.model, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"describe.local.model = {settings.model!r}: cannot be loaded ({reason}); give a folder or a name of "
                "the hub with safetensors, of a kind that Transformers has among its image-text-to-text models"
            ) from None
        self._model.to(self._device).eval()
        self._encoder_decoder = bool(self._model.config.is_encoder_decoder)
        if not self._encoder_decoder:
            self._processor.tokenizer.padding_side = "left"  # The answer is written behind the prompt.
        self._most = settings.batch

    def answer(self, asked: Sequence["Asked"]) -> list[Answer]:
        """What the model says to prompts about pictures."""
        import torch

        found: list[Answer] = []
        while len(found) < len(asked):
            piece = asked[len(found) : len(found) + self._most]
            try:
                found += self._generate(piece)
            except torch.OutOfMemoryError:
                if len(piece) == 1:
                    raise UserError(
                        f"describe.local: out of memory on {self._device} with one picture; "
                        "set a smaller describe.side or describe.local.max_tokens, or take a smaller model"
                    ) from None
                self._most = len(piece) // 2
                console.print(f"out of memory on {self._device}: the batch is halved to {self._most}")
                torch.cuda.empty_cache()
        return found

    def _generate(self, asked: Sequence["Asked"]) -> list[Answer]:
        import torch

        inputs = self._inputs(asked)
        torch.manual_seed(asked[0].seed)
        how: dict[str, Any] = {"do_sample": False}
        if self._settings.temperature > 0:
            how = {"do_sample": True, "num_beams": 1, "temperature": self._settings.temperature}
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, **how, max_new_tokens=self._settings.max_tokens)
        if not self._encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [Answer(text, self._finish(row)) for text, row in zip(texts, tokens, strict=True)]

    def _inputs(self, asked: Sequence["Asked"]) -> Any:
        images = [one.image for one in asked]
        prompts = [self._prompt(one.prompt) for one in asked]
        special = {}
        if (begin := self._processor.tokenizer.bos_token) and prompts[0].startswith(begin):
            special = {"add_special_tokens": False}  # The chat template has begun the text already.
        pictures = images if self._encoder_decoder else [[image] for image in images]
        inputs = self._processor(images=pictures, text=prompts, padding=True, return_tensors="pt", **special)
        return inputs.to(self._device, self._model.dtype)

    def _prompt(self, prompt: str) -> str:
        """The prompt as the model's chat template has it, with a place for the picture."""
        if not self._processor.chat_template:
            return prompt
        token: str = self._processor.image_token
        # Templates of older models know texts alone; some of them set the picture's place themselves.
        for content in [{"type": "image"}, {"type": "text", "text": prompt}], prompt, f"{token}\n{prompt}":
            chat = [{"role": "user", "content": content}]
            try:
                written: str = self._processor.apply_chat_template(chat, add_generation_prompt=True)
            except (TypeError, TemplateError):
                continue
            if token in written:
                return written
        raise UserError(
            f"describe.local.model = {self._settings.model!r}: its chat template has no place for a picture; "
            "take a model that is asked about pictures"
        )

    def _finish(self, tokens: "torch.Tensor") -> str:
        """length, unless the model ended its text itself."""
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        return "stop" if ends & set(tokens[1:].tolist()) else "length"


class Asked(NamedTuple):
    """A question to the model."""

    image: Image.Image
    prompt: str
    seed: int


Prepared = list[tuple[dict[str, Any], Future[bytes | Problem]]]


def describe(
    shards: Sequence[Shard],
    settings: LocalSettings,
    order: Order,
    preparer: Preparer,
    write: Callable[[Shard, Sequence[Row]], None],
) -> Iterator[Shard]:
    """Describe the pictures of shards; yields each shard that is written."""
    model = Model(settings)
    for shard, prepared in _ahead(shards, preparer):
        write(shard, [one.row() for one in _described(prepared, model, order, settings.batch)])
        yield shard


def _ahead(shards: Sequence[Shard], preparer: Preparer) -> Iterator[tuple[Shard, Prepared]]:
    """Shards of which the pictures are decoded, or soon will be, while the model is busy with the one before."""
    ahead: deque[tuple[Shard, Prepared]] = deque()
    for shard in shards:
        ahead.append((shard, [(item, preparer.submit(item)) for item in shard.items().to_pylist()]))
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def _described(prepared: Prepared, model: Model, order: Order, batch: int) -> list[Described]:
    rows, waiting = [], deque[tuple[Draft, bytes]]()
    for item, future in prepared:
        with decoders_named():
            jpeg = future.result()
        if isinstance(jpeg, Problem):
            rows.append(Described(item["image_id"], error=jpeg))
            continue
        drafts = order.drafts(item)
        waiting.extend((draft, jpeg) for draft in drafts)
        rows.append(Described(item["image_id"], drafts))
    while waiting:
        now = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
        answers = model.answer([Asked(_image(jpeg), draft.prompt, draft.seed) for draft, jpeg in now])
        for (draft, jpeg), answer in zip(now, answers, strict=True):
            draft.take(answer)
            if not draft.done:
                waiting.append((draft, jpeg))
    return rows


def _image(jpeg: bytes) -> Image.Image:
    with Image.open(BytesIO(jpeg)) as image:
        return image.convert("RGB")
