"""What looks like a secret is masked where command lines and messages are written; everything else stays."""

from __future__ import annotations

import sys

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.secrets import masked, masked_command

SECRET = "Xq7Zp2LmN8vB4cD6"


@pytest.mark.parametrize(
    "words",
    [
        ["--token", SECRET],
        ["--api-key", SECRET, "seed=1"],
        [f"--hub-token={SECRET}"],
        [f"data.password={SECRET}"],
        [f"AWS_SECRET_ACCESS_KEY={SECRET}"],
        [f"data.files=s3://me:{SECRET}@bucket/text.txt"],
        [f"data.files=[https://{SECRET}@host/a.txt,b.txt]"],
        [f"https://host/a?token={SECRET}&part=1"],
        [f"https://host/a?X-Amz-Signature={SECRET}"],
        [f"model.encoder=hf_{SECRET}"],
        [f"name=ghp_{SECRET}{SECRET}"],
        [f'{{"comet": {{"api_key": "x {SECRET}"}}}}'],
    ],
)
def test_secrets_are_masked(words: list[str]) -> None:
    written = masked_command(["train.py", *words, "seed=1"])
    assert SECRET not in written and "***" in written
    assert written.startswith("train.py ") and written.endswith(" seed=1")
    assert masked(written) == written
    assert SECRET not in str(InputError(" ".join(words[-1:]))) or (words[0].startswith("--") and len(words) > 1)


@pytest.mark.parametrize(
    "words",
    [
        ["--batch-tokens", "64", "--max-length=32", "model.tokenizer=bert", "data.max_tokens=7"],
        ["--output", "runs/token", "name=secret-garden", "data.files=s3://bucket/key.txt", "https://host:80/a?b=1&c=2"],
        ["the", "tokenizer", "has", "no", "mask", "token:", "choose", "another"],
        ["objective.temperature=0.05", "batch.exchange=ring", "keep_checkpoints=3", "--hook", "mine:Password"],
    ],
)
def test_what_is_none_stays(words: list[str]) -> None:
    assert masked_command(words) == " ".join(words)


def test_run_json_has_none(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffcse_scale.recipe_file import load_recipe
    from diffcse_scale.runs.directory import RunDirectory

    monkeypatch.setattr(sys, "argv", ["train.py", "--token", SECRET, f"data.files=https://me:{SECRET}@host/a.txt"])
    recipe = load_recipe("quickstart")
    with RunDirectory.open(str(tmp_path / "run"), recipe, "new") as run:
        run.describe(recipe, data_fingerprint="0", precision="float32")
    assert SECRET not in (tmp_path / "run" / "run.json").read_text()
