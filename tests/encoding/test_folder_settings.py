"""Settings in a model's folder: what `encode` follows, and what it only tells."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from diffcse_scale.encoding import EncodeOptions, encode, load
from tests.support.files import set_about

Options = Callable[..., EncodeOptions]


@pytest.mark.parametrize(
    ("about", "chosen", "told"),
    [
        ({"prompts": {"query": "q: ", "document": "d: "}}, None, "--prompt-name document adds it"),
        ({"prompts": {"passage": "p: "}, "default_prompt_name": "query"}, None, "--prompt-name passage adds it"),
        ({"prompts": {"passage": "p: "}}, "passage", ""),
        ({"prompts": {"document": "d: "}, "default_prompt_name": "document"}, None, ""),
        ({"prompts": {"query": "q: ", "document": ""}}, None, ""),
        ({}, None, ""),
    ],
)
def test_a_prompt_for_documents_that_is_not_added_is_told(
    options: Options,
    text_file: Path,
    model_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    about: dict[str, Any],
    chosen: str | None,
    told: str,
) -> None:
    prompted = tmp_path / "prompted"
    shutil.copytree(model_dir, prompted)
    prompts = {"query": "", **about.get("prompts", {})}
    set_about(prompted, **{**about, "prompts": prompts})
    encode(options(text_file, model=str(prompted), prompt_name=chosen), progress=False)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("diffcse_scale")]
    assert said == ([f"{prompted} has a prompt for documents, which is not added; {told}."] if told else [])


def test_a_model_that_keeps_the_first_numbers_of_its_vectors_is_stored_so(
    options: Options, text_file: Path, model_dir: Path, sentences: list[str], tmp_path: Path
) -> None:
    short = tmp_path / "short"
    shutil.copytree(model_dir, short)
    set_about(short, truncate_dim=5)
    encode(options(text_file, model=str(short)), progress=False)
    found = np.asarray(load(tmp_path / "out"))
    assert found.shape == (103, 5)
    np.testing.assert_allclose(found, SentenceTransformer(str(short)).encode(sentences), atol=1e-6)
