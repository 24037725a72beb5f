"""A recipe whose model folder holds a configuration and a tokenizer, and no weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import BertConfig

from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recipe
from tests.support.tiny_models import tiny_tokenizer


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    config = BertConfig(vocab_size=32, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    config.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    recipe = {
        "name": "planned",
        "model": {"encoder": str(folder / "model"), "generator": str(folder / "model")},
        "data": {"files": "nowhere.txt", "max_length": 16},
        "batch": {"sentences": 32},
        "evaluation": {"max_length": 16},
        "optimizer": {"learning_rate": 1e-4},
    }
    file = folder / "planned.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


@pytest.fixture(scope="session")
def recipe(recipe_file) -> Recipe:
    return load_recipe(str(recipe_file))
