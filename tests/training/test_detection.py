"""What is said of the discriminator after an evaluation: over words, on any number of ranks, and whether it used z."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.tokenizers import Tokenizers
from diffcse_scale.training import detection as module
from diffcse_scale.training.detection import in_words, measure_detection
from tests.support.tiny_models import tiny_bert, tiny_masked_lm, tiny_tokenizer

SENTENCES = ["a cat", "a cat runs", "a dog", "a dog runs", "a horse", "the grass"]
RECIPE = load_recipe("quickstart", ["objective.masking_ratio=0.5"])


class Judged:
    """A model whose logits are kept with the truth, as `measure_detection` sees them."""

    def __init__(self, gain: float = 0.0, fidelity: str = "sampled") -> None:
        self.tokenizer, self.calls, self.gain = tiny_tokenizer(), [], gain
        recipe = load_recipe("quickstart", [f"objective.fidelity={fidelity}"])
        self.model = DiffCSENetworks(tiny_bert(), recipe.objective)
        self.generator = Generator(tiny_masked_lm("bert"), "sampled", self.tokenizer.all_special_ids, seed=0)
        self._logits = self.model.logits
        self.model.logits = self.logits  # type: ignore[method-assign]

    def logits(self, chunk: Any, edited: Tensor, z: Tensor) -> Tensor:
        """The model's, moved by `gain` towards the truth where z is the row's own."""
        replaced = (edited != chunk.original_ids).flatten(0, 1)
        is_own = torch.equal(z, self.model.project(self.model.encode(chunk)))
        logits = self._logits(chunk, edited, z) * 3 + (self.gain * (2.0 * replaced - 1) if is_own else 0)
        self.calls.append((chunk, replaced, logits, is_own))
        return logits

    def measure(self, enough: int = 60, sentences: list[str] = SENTENCES) -> dict[str, float | None]:
        return measure_detection(
            sentences, self.model, self.generator, Tokenizers.shared(self.tokenizer), RECIPE, "cpu", enough
        )

    def words(self, own: bool) -> tuple[Tensor, Tensor]:
        """Truth and logits of all words, special tokens and padding left out by hand."""
        found = []
        for chunk, replaced, logits, is_own in self.calls:
            if is_own is own:
                ids = chunk.original_ids.flatten(0, 1)
                words = [[i not in self.tokenizer.all_special_ids for i in row] for row in ids.tolist()]
                found.append((replaced[torch.tensor(words)], logits[torch.tensor(words)]))
        return torch.cat([truth for truth, _ in found]), torch.cat([logits for _, logits in found])


@pytest.mark.parametrize("fidelity", ["sampled", "official"])
def test_measures_are_scikit_learns_over_words(fidelity: str) -> None:
    """The area under the curve to 0.002: logits are counted in 4,096 bins."""
    judged = Judged(fidelity=fidelity)
    found = judged.measure()
    truth, own = judged.words(own=True)
    _, other = judged.words(own=False)
    losses = [log_loss(truth, logits.double().sigmoid()) for logits in (own, other)]
    share = float(truth.float().mean())
    entropy = log_loss(truth, [share] * len(truth))
    assert found["dev_rtd_auroc"] == pytest.approx(roc_auc_score(truth, own), abs=0.002)
    assert found["dev_rtd_skill"] == pytest.approx(1 - losses[0] / entropy, rel=1e-5)
    assert found["dev_rtd_z_gain"] == pytest.approx(losses[1] - losses[0], abs=1e-6)
    assert found["dev_rtd_replaced"] == int(truth.sum()) >= 60
    assert len(judged.calls) > 2  # sentences were edited again, until there were enough


def test_a_discriminator_that_uses_z_is_told_from_one_that_does_not() -> None:
    assert in_words(Judged(gain=1.0).measure()).startswith("yes: its loss with another sentence's z is +")
    assert in_words(Judged().measure()).startswith("no: ")
    assert in_words({}) == "not measured"


def test_a_measurement_leaves_random_numbers_and_mode_as_they_were_and_is_repeated_exactly() -> None:
    judged = Judged()
    judged.model.train()
    state = torch.get_rng_state()
    assert judged.measure() == judged.measure()
    assert torch.equal(torch.get_rng_state(), state) and judged.model.training


def test_where_nothing_is_replaced_only_the_gain_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged()
    monkeypatch.setattr(judged.generator, "edit", lambda chunk: chunk.original_ids)
    found = judged.measure()
    assert (found["dev_rtd_auroc"], found["dev_rtd_skill"], found["dev_rtd_replaced"]) == (None, None, 0)
    assert found["dev_rtd_z_gain"] is not None


@pytest.mark.parametrize(("world_size", "judged"), [(2, 6), (4, 6), (6, 6), (13, 6)])
def test_replaced_tokens_are_judged_on_any_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch, world_size: int, judged: int
) -> None:
    """Of six sentences: all ranks make as many passes, which ZeRO-3 waits for, and no two corrupt a row alike."""
    chunks = []
    monkeypatch.setattr(module, "world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        of_rank = Judged()
        of_rank.measure(enough=0)  # one pass over what a rank has
        assert len(of_rank.calls) == 2  # own z and another's
        chunks.append(of_rank.calls[0][0])
    sentences = {tiny_tokenizer().decode(ids, skip_special_tokens=True) for c in chunks for ids in c.input_ids[:, 0]}
    rows = [row for chunk in chunks for row in chunk.row_ids.flatten().tolist()]
    assert len(sentences) == judged and len(set(rows)) == len(rows)
    assert all(len(chunk.input_ids) >= 2 for chunk in chunks)
