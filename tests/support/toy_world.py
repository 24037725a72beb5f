"""A toy world for whole runs: a learnt vocabulary, a random masked language model, and text from the grammar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from diffcse_scale.embedded.grammar import graded_pairs, training_sentences

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def toy_tokenizer(sentences: list[str], vocabulary: int = 300) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of BERT's form, learnt from `sentences`."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # named beforehand, the characters inside words have the same numbers in each run; else a hash table orders them
    inside = sorted({f"##{letter}" for text in sentences for word in text.lower().split() for letter in word[1:]})
    named = SPECIAL + [token for token in inside if token[2:].isalpha()]
    tokenizer.train_from_iterator(sentences, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=named))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True)))


def save_toy_masked_lm(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> None:
    """A two-layer BERT of width 32 with dropout, and its tokenizer."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_toy_world(folder: Path, pairs: int = 60) -> dict[str, Any]:
    """Make `model/`, `corpus.txt` and `pairs.tsv`; returns a recipe that trains on them."""
    sentences = training_sentences(600, seed=3)
    (folder / "corpus.txt").write_text("\n".join(sentences) + "\n")
    lines = [f"{score}\t{a}\t{b}\n" for score, a, b in graded_pairs(pairs, seed=3)]
    (folder / "pairs.tsv").write_text("".join(lines))
    save_toy_masked_lm(folder / "model", toy_tokenizer(sentences))
    return {
        "name": "toy",
        "seed": 1,
        "max_steps": 12,
        "log_every": 1,
        "checkpoint_every": 6,
        "keep_checkpoints": 5,
        "model": {"encoder": str(folder / "model"), "generator": str(folder / "model")},
        "data": {
            "files": str(folder / "corpus.txt"),
            "max_length": 16,
            "cache_dir": str(folder / "cache"),
            "workers": 1,
        },
        "batch": {"sentences": 16},
        "objective": {"rtd_weight": 0.1},
        "optimizer": {"learning_rate": 1e-3},
        "evaluation": {"data": str(folder / "pairs.tsv"), "every": 4, "max_length": 32},
    }
