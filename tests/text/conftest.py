"""A tokenizer and tokenized corpora, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.tokens import TokenizedCorpus, tokenize
from tests.support.text_material import WORDS, make_tokenizer, sentence


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(WORDS)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., DataRecipe]:
    """recipe(file, ...) with a cache of the test's own."""

    def make(*files: Path | str, **options: object) -> DataRecipe:
        values = {"files": [str(file) for file in files], "cache_dir": str(tmp_path / "cache"), "workers": 1}
        return DataRecipe.model_validate(values | options)

    return make


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[int, TokenizedCorpus]:
    """101 tokenized rows of one, two and three columns; the columns of a row differ in length."""
    folder = tmp_path_factory.mktemp("corpora")
    tokenized = {}
    for columns in (1, 2, 3):
        lines = ["\t".join(f"column{column}" for column in range(columns))]
        lines += ["\t".join(sentence(index + 101 * column) for column in range(columns)) for index in range(101)]
        path = folder / f"{columns}.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        data = DataRecipe.model_validate(
            {"files": str(path), "columns": lines[0].split("\t"), "cache_dir": str(folder), "workers": 1}
        )
        tokenized[columns] = tokenize(data, [tokenizer])
    return tokenized
