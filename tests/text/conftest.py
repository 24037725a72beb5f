"""A small WordPiece tokenizer made here, and ragged corpora as recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from diffcse_scale.recipe import DataRecipe, Recipe
from diffcse_scale.text.tokens import TokenizedCorpus, tokenize

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{index}" for index in range(200)]


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """WordPiece with one token a word, [CLS] and [SEP] around a sentence."""
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *words])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(WORDS)


def sentence(index: int) -> str:
    """A sentence that no other index has, of 2 to 13 words."""
    number = f"w{index % 200} w{index // 200}"
    return " ".join([number, *(f"w{(index * 7 + k) % 200}" for k in range(index % 12))])


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., DataRecipe]:
    """recipe(file, ...) with a cache of the test's own."""

    def make(*files: Path | str, **options: object) -> DataRecipe:
        values = {"files": [str(file) for file in files], "cache_dir": str(tmp_path / "cache"), "workers": 1}
        return DataRecipe.model_validate(values | options)

    return make


@pytest.fixture(scope="session")
def corpora(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> dict[int, TokenizedCorpus]:
    """101 tokenized rows of one, two and three columns; the columns of a row differ in length."""
    folder = tmp_path_factory.mktemp("corpora")
    tokenized = {}
    for columns in (1, 2, 3):
        lines = ["\t".join(f"column{column}" for column in range(columns))]
        lines += [
            "\t".join(sentence(index + 101 * column) for column in range(columns)) for index in range(101)
        ]
        path = folder / f"{columns}.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        data = DataRecipe.model_validate(
            {"files": str(path), "columns": lines[0].split("\t"), "cache_dir": str(folder), "workers": 1}
        )
        tokenized[columns] = tokenize(data, tokenizer)
    return tokenized


def training_recipe(**sections: dict[str, object]) -> Recipe:
    """A recipe for `Batches`, which reads its seed, batch and objective only."""
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"encoder": "unused", "generator": "unused"},
            "data": {"files": "unused"},
            "optimizer": {"learning_rate": 1e-3},
            **sections,
        }
    )
