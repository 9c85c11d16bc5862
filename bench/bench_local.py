"""`caption.describe` with a model on this machine, from files to the table, against Transformers one picture at a time.

    python bench/bench_local.py [--pictures 384] [--batches 16 64] [--tokens 128] [--plain 4]
    python bench/bench_local.py --small                  # a tiny model and few pictures: does it run at all?

A LLaVA of the size of JoyCaption (CLIP ViT-L/14 at 336 px, a Llama of 32 layers) with random weights and a token per
byte. Such a model does not end a text: every answer has TOKENS tokens. Rates are those behind the first shard, and are
printed as shards are finished.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_describe import corpus
from bench_embed import place, timed
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from caption.describe import STAGE
from shared.device import devices

SPECIAL = ("<s>", "<pad>", "</s>", "<image>")
PROMPT = "Describe this illustration in one paragraph."
TEMPLATE = "{% for message in messages %}USER: <image>\n" + PROMPT + "{% endfor %} ASSISTANT:"
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
TEXT = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte."""
    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def checkpoint(folder: Path, small: bool) -> None:
    """A model with random weights."""
    vision = CLIPVisionConfig(**(SMALL if small else VISION), image_size=336, patch_size=14)
    words = {"num_key_value_heads": 2 if small else 8, "vocab_size": 128_256, "max_position_embeddings": 4096}
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    text = LlamaConfig(**(SMALL if small else TEXT), **words, **ends)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, image_seq_length=576)
    torch.set_default_dtype(torch.bfloat16)
    with devices()[0]:
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    LlavaProcessor(
        images, tokenizer(), 14, "default", TEMPLATE, num_additional_image_tokens=1, image_token="<image>"
    ).save_pretrained(folder)


def plain(source: Path, model: str, pictures: int, tokens: int) -> float:
    """Pictures per second, one after the other, as the documentation of Transformers has it."""
    processor = AutoProcessor.from_pretrained(model)
    module: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.bfloat16).to(devices()[0]).eval()
    start = 0.0
    for number, path in enumerate(sorted(source.iterdir())[: pictures + 1]):
        if number == 1:
            start = time.perf_counter()
        text = processor.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)
        inputs = processor(images=Image.open(path).convert("RGB"), text=text, return_tensors="pt")
        with torch.inference_mode():
            written = module.generate(
                **inputs.to(module.device, module.dtype), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
            )
        processor.batch_decode(written.cpu())
    return pictures / (time.perf_counter() - start)


def main() -> None:
    """Ours with each batch, then the plain loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=384)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--plain", type=int, default=4, help="pictures of the plain loop")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.small:
        args.pictures, args.batches, args.tokens, args.plain = 12, [4], 8, 1
    print(place(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), Path(name) / "model"
        tables = corpus(folder, args.pictures, 1024)
        checkpoint(model, args.small)
        for batch in args.batches:
            local = {"model": str(model), "batch": batch, "max_tokens": args.tokens, "temperature": 0}
            how = {"local": local, "styles": {"long": PROMPT}, "attempts": 1, "shard_rows": batch}
            _, found = timed("describe", STAGE, folder / "source", tables, **how)
            print(f"batches of {batch}: {found:,.2f} pictures/s, {found * args.tokens:,.0f} tokens/s", flush=True)
        print(
            f"plain loop: {plain(folder / 'source', str(model), args.plain, args.tokens):,.2f} pictures/s", flush=True
        )


if __name__ == "__main__":
    main()
