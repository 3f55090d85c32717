"""Make a small Qwen3 with random weights and a tokenizer, from nothing but a seed.

Run as a script by the engine environment's Python (it needs torch, transformers and tokenizers):

    python tiny_model.py FOLDER

It is the real architecture in the real engine, for measuring caches and not for reading answers. Two properties are
made on purpose. Only tokens that are one whole lower-case word with a leading space have an embedding, and since
the output head is tied to the embedding, all others have logit 0 and are never the most likely one: an answer never
ends early, streams one printable word a token, and is cut into the same tokens again when it comes back as history.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

SEED = 20240607
VOCAB = 4096
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aeiou"
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus(lines: int = 3000) -> list[str]:
    """Return lines of made-up words, and the English of the workload's questions, for training a tokenizer."""
    rng = random.Random(SEED)  # noqa: S311 - reproducible, not secret
    syllables = [c + v for c in _CONSONANTS for v in _VOWELS]
    words = sorted({"".join(rng.choices(syllables, k=rng.choice((1, 2, 3)))) for _ in range(1500)})
    text = [" ".join(rng.choices(words, k=40)) + " hi hi hi" for _ in range(lines)]
    english = "Hi, here's some system prompt: for user 1, here are some other context. Here's question #2: can you "
    return [
        *text,
        *[english + "tell me a new long story with a happy ending? WARMUP here are some text"] * 100,
    ]


def make(folder: Path) -> None:
    """Write model and tokenizer to `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 - not a password
        pad_token="<|endoftext|>",  # noqa: S106
    )
    fast.chat_template = _TEMPLATE
    size = len(fast)
    words = [i for i in range(size) if _is_word(fast, i)]

    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    model = Qwen3ForCausalLM(config).float()
    speaks = torch.zeros(size, 1)
    speaks[words] = 1.0
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(speaks)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def _is_word(tokenizer: object, index: int) -> bool:
    text = tokenizer.decode([index])  # type: ignore[attr-defined]
    word = text[1:]
    shaped = text[:1] == " " and word.isascii() and word.isalpha() and word.islower()
    return shaped and bool(tokenizer.encode(text) == [index])  # type: ignore[attr-defined]


if __name__ == "__main__":
    make(Path(sys.argv[1]))
