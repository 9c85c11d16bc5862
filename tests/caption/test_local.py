"""Models on this machine, tiny ones with random weights: what they write must be what Transformers itself writes."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from caption.describe import STAGE, DescribeSettings
from caption.local import Asked, LocalSettings, Model
from shared.errors import UserError

SPECIAL = ("<s>", "<pad>", "</s>", "<image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
LLAVA = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
OLD = "{{ bos_token }}{% for message in messages %}{{ 'USER: ' + message['content'] }}{% endfor %} ASSISTANT:"
"""A template that knows texts alone."""
QWEN = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} A:"
)
PROMPTS = ["Who is it?", "Describe this picture with many words, please.", "Why?"]


def tokenizer(**more: Any) -> PreTrainedTokenizerFast:
    """A token per byte, behind <s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(list(SPECIAL))
    tokens.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>", **more
    )


TEXT = {"vocab_size": 264, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2} | {
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llava(folder: Path, template: str = LLAVA) -> None:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=3, image_seq_length=4)
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        images, tokenizer(), 14, "default", template, num_additional_image_tokens=1, image_token="<image>"
    )
    save(folder, LlavaForConditionalGeneration(config), processor)


def qwen(folder: Path) -> None:
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    text = TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=6, video_token_id=7, vision_start_token_id=4,
        vision_end_token_id=5,
    )  # fmt: skip
    images = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    processor = Qwen2VLProcessor(images, tokenizer(), Qwen2VLVideoProcessor(), chat_template=QWEN)
    save(folder, Qwen2VLForConditionalGeneration(config), processor)


def florence(folder: Path) -> None:
    vision = {"depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1]} | {
        "patch_prenorm": [False, True], "embed_dim": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2],
        "window_size": 4, "projection_dim": 32,
    }  # fmt: skip
    text = {"model_type": "bart", "vocab_size": 264, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1} | {
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "max_position_embeddings": 512, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 2, "forced_eos_token_id": None,
    }  # fmt: skip
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=3, pad_token_id=1, eos_token_id=2)
    model = Florence2ForConditionalGeneration(config)
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    images.image_seq_length = 17
    tokens = tokenizer(extra_special_tokens={"image_token": "<image>"})
    save(folder, model, Florence2Processor(images, tokens))


def save(folder: Path, model: Any, processor: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(8)  # So that what is written depends on the picture.
    model.generation_config.max_length = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


KINDS = {"llava": llava, "qwen": qwen, "florence": florence}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / request.param
    torch.manual_seed(0)
    KINDS[request.param](folder)
    return folder


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40, 60 + 20 * n, 3), np.uint8)) for n in range(3)]


@cache
def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()


def reference(folder: Path, image: Image.Image, prompt: str, tokens: int = 12) -> str:
    """One by one, as the documentation of Transformers has it."""
    processor, model = loaded(folder)
    if "florence" in folder.name:
        inputs = processor(text=prompt, images=image, return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return processor.batch_decode(written, skip_special_tokens=True)[0]
    content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def asked(folder: Path, images: list[Image.Image]) -> list[Asked]:
    prompts = ["<MORE_DETAILED_CAPTION>", "<CAPTION>", "<CAPTION>"] if "florence" in folder.name else PROMPTS
    return [Asked(image, prompt, 0) for image, prompt in zip(images, prompts, strict=True)]


@pytest.mark.parametrize("batch", [2, 8])
def test_texts_are_those_of_the_reference(folder, images, batch):
    model = Model(LocalSettings(model=str(folder), batch=batch, max_tokens=12, temperature=0))
    questions = asked(folder, images)
    expected = [reference(folder, one.image, one.prompt) for one in questions]
    assert len(set(expected)) == 3
    assert [answer.text for answer in model.answer(questions)] == expected


def test_chance_is_the_same_each_time(folder, images):
    model = Model(LocalSettings(model=str(folder), max_tokens=12, temperature=1))
    one = asked(folder, images)[0]
    first, second, other = (model.answer([one._replace(seed=seed)])[0].text for seed in (1, 1, 2))
    assert first == second != other


def test_memory_that_ends_halves_the_batch(folder, images, monkeypatch):
    model = Model(LocalSettings(model=str(folder), batch=4, max_tokens=12, temperature=0))
    questions = asked(folder, images)
    expected = model.answer(questions)
    generate, sizes = model._model.generate, []

    def small(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError
        return generate(**inputs)

    monkeypatch.setattr(model._model, "generate", small)
    limit = 1
    assert model.answer(questions) == expected
    assert sizes == [3, 1, 1, 1]
    limit = 0
    with pytest.raises(UserError, match="out of memory on cpu with one picture"):
        model.answer(questions)


def test_why_it_stopped_is_told(folder, images, monkeypatch):
    model = Model(LocalSettings(model=str(folder), max_tokens=12, temperature=0))
    questions = asked(folder, images)[:2]
    whole = model._generate(questions)
    assert [answer.finish for answer in whole] == ["length", "length"]
    generate = model._model.generate

    def ended(**inputs):
        tokens = generate(**inputs)
        tokens[0, -2:] = torch.tensor([2, 1])  # The end, and what fills the row.
        return tokens

    monkeypatch.setattr(model._model, "generate", ended)
    assert [answer.finish for answer in model._generate(questions)] == ["stop", "length"]


def test_the_stage_writes_what_the_model_says(folder, corpus):
    corpus.add(3)
    (corpus.source / "broken.png").write_bytes(b"no picture")
    corpus.write()
    style = "<CAPTION>" if "florence" in folder.name else "Who is it?"
    about = {"model": str(folder), "batch": 2, "max_tokens": 12, "temperature": 0}
    STAGE.run(corpus.job(DescribeSettings(local=about, styles={"a": style}, shard_rows=2, attempts=1)))
    rows = corpus.rows()
    assert rows.pop("broken.png")["error"] == "not_an_image"
    for name, row in rows.items():
        jpeg = io.BytesIO()
        with Image.open(corpus.source / name) as image:
            image.save(jpeg, "JPEG", quality=92, subsampling=0)
        text = reference(folder, Image.open(jpeg), style)
        assert [problem["text"] for problem in row["problems"]] == [text]  # Noise is no sentence.
        assert row["descriptions"] == []


def test_older_chat_templates(images, tmp_path):
    torch.manual_seed(0)
    llava(tmp_path / "old", OLD)
    model = Model(LocalSettings(model=str(tmp_path / "old"), max_tokens=4))
    assert model._prompt("Who?") == "<s>USER: <image>\nWho? ASSISTANT:"
    tokens = model._inputs([Asked(images[0], "Who?", 0)])["input_ids"][0].tolist()
    assert tokens.count(0) == 1  # The template begins the text, the tokenizer does not do so again.
    assert tokens.count(3) == 4
    assert len(model.answer([Asked(images[0], "Who?", 0)])) == 1


def test_pickled_weights_are_not_read(tmp_path):
    torch.manual_seed(0)
    llava(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save({}, tmp_path / "model/pytorch_model.bin")
    with pytest.raises(UserError, match=r"describe\.local\.model = .*: cannot be loaded .*safetensors"):
        Model(LocalSettings(model=str(tmp_path / "model")))


def test_what_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"describe\.local\.model = .*: cannot be loaded"):
        Model(LocalSettings(model=str(tmp_path)))
