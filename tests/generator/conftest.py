"""A pretraining of a second."""

from __future__ import annotations

import pytest

from diffcse_scale.embedded.grammar import training_sentences
from diffcse_scale.generator.pretrain_options import PretrainOptions

SENTENCES = training_sentences(500, seed=9)


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Makes options of a run of a second; the corpus is 500 sentences of the grammar."""
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES))

    def make(**changed) -> PretrainOptions:
        scratch = {} if "base" in changed else {"layers": 1, "hidden": 32, "heads": 2, "max_positions": 64}
        if not {"base", "tokenizer"} & changed.keys():
            scratch["vocab_size"] = 600
        return PretrainOptions(
            **{
                "files": str(tmp_path / "corpus.txt"),
                "output": str(tmp_path / "out"),
                "max_length": 32,
                "held_out": 50,
                "steps": 4,
                "batch_size": 32,
                "learning_rate": 5e-3,
                "log_every": 2,
                "workers": 1,
                **scratch,
                **changed,
            }
        )

    return make
