"""A tokenizer whose words are the token ids, so that a prompt of n words has exactly n tokens."""

from __future__ import annotations

import json
from pathlib import Path


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into a model's folder.

    Words are `t` and the id, all equally long: the end token is looked for inside words, so none may begin with it.
    """
    words = {word_of(number, vocab_size): number for number in range(vocab_size)}
    unknown, end = word_of(0, vocab_size), word_of(1, vocab_size)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": unknown},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unknown,
        "eos_token": end,
        "model_max_length": 1 << 20,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def word_of(number: int, vocab_size: int) -> str:
    """The word of a token id."""
    return f"t{number:0{len(str(vocab_size - 1))}d}"
