"""What is needed at the end of a run is looked at before its beginning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from diffcse_scale.embedded.grammar import graded_pairs
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.finite import NotFinite
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.text.tokenizers import Tokenizers
from diffcse_scale.training.console import print_summary
from diffcse_scale.training.development import DevelopmentSet, fingerprints
from tests.support.tiny_models import tiny_bert, tiny_tokenizer

PAIRS = graded_pairs(6, seed=1)
SOME = [(4.0, "a dog runs", "a cat runs"), (1.0, "a dog", "the grass"), (3.0, "a horse", "a cat")]


def development(file: Path, *lines: str) -> DevelopmentSet | None:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = load_recipe("quickstart", [f"evaluation.data={file}"])
    return DevelopmentSet.of(recipe, load_tokenizers(recipe.model))


@pytest.mark.parametrize("count", [1, 6])
def test_pairs_of_one_score_are_refused(tmp_path: Path, count: int) -> None:
    """They rank nothing; and so does a single pair."""
    lines = [f"3.0\t{first}\t{second}" for _, first, second in PAIRS[:count]]
    with pytest.raises(
        InputError, match=f"same.tsv has {count} pairs, all with the same score, .*evaluation.data=null"
    ):
        development(tmp_path / "same.tsv", *lines)


def test_pairs_in_another_language_are_refused_and_a_few_unknown_words_are_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="100% of the tokens are unknown to the tokenizer of embedded"):
        development(tmp_path / "zh.tsv", "1\t老师\t学生", "2\t河边\t公园")
    with pytest.raises(InputError, match="100% of the tokens are unknown"):  # of one side alone, which ranks nothing
        development(tmp_path / "half.tsv", *(f"{score}\t{first}\t老师" for score, first, _ in PAIRS))
    known = [f"{score}\t{first}\t{second}" for score, first, second in PAIRS]
    found = development(tmp_path / "some.tsv", *known, "1\t老\t学")
    assert found is not None and 0 < found.unknown < 0.1
    assert str(found).startswith("7 pairs, ") and str(found).endswith("% of the tokens unknown")


def test_the_development_pairs_and_models_of_a_run_are_known_by_their_content(tmp_path: Path) -> None:
    class Tokens:
        fingerprint = "of the tokens"

    lines = [f"{score}\t{first}\t{second}" for score, first, second in PAIRS]
    recipe = load_recipe("quickstart", [f"data.cache_dir={tmp_path / 'cache'}"])

    def of(name: str, *rows: str) -> dict[str, str]:
        return fingerprints(recipe, Tokens(), development(tmp_path / name, *rows))  # type: ignore[arg-type]

    first = of("one.tsv", *lines)
    assert of("copy.tsv", *lines) == first
    assert first["data_fingerprint"] == "of the tokens"
    other = of("other.tsv", *reversed(lines))
    assert {name for name in first if other[name] != first[name]} == {"development_fingerprint"}


def test_an_undefined_score_is_called_so_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of collapsed embeddings: neither the table nor result.json fails for it."""
    recipe = load_recipe("quickstart")
    result = {"steps": 2, "before": {"dev_spearman": None}, "best": {"step": 2, "dev_spearman": None}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffcse_scale.training.console.Console", lambda **_: Console(width=200))
        print_summary(recipe, RunDirectory(tmp_path), result)
    printed = capsys.readouterr().out
    assert "undefined (mean)" in printed or "undefined (cls)" in printed
    assert "undefined (best, step 2 of 2)" in printed
    assert "curves.png" not in printed  # nothing has drawn it, as without matplotlib


def test_embeddings_that_are_not_finite_are_named() -> None:
    backbone, tokenizer = tiny_bert(), tiny_tokenizer()
    development = DevelopmentSet(SOME, Tokenizers.shared(tokenizer), 16)
    assert -100 <= development.spearman(Encoder(backbone, "mean")) <= 100
    with torch.no_grad():
        backbone.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("grass")] = 1e30
        with pytest.raises(NotFinite, match="Row 3 of the development sentences has"):
            development.spearman(Encoder(backbone, "mean"))
