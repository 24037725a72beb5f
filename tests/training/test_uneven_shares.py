"""A batch that the ranks cannot share equally is learnt from as on one rank, at every ZeRO stage, in chunks and whole.

The truth is one rank at ZeRO-0 with the whole batch in one graph. Without dropout losses, statistics and weights after
two steps agree to 1e-5 of each tensor's norm (largest seen: 3.1e-7); shares that are taken for equal exceed that
20 times. Ranks with different numbers of chunks would wait for each other for ever at ZeRO-2 and 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import deepspeed
import pytest
import torch
from torch import Tensor

from diffcse_scale.distributed import all_mean, rank, world_size
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import initialize, optimizer_step
from diffcse_scale.engine.launch import start_process_group
from diffcse_scale.model.packing import allow_packing
from diffcse_scale.objective.objective import Objective, Parts
from diffcse_scale.recipe import DataRecipe, Recipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.batches import Batches
from diffcse_scale.text.tokenizers import Tokenizers
from diffcse_scale.text.tokens import TokenizedCorpus, tokenize
from diffcse_scale.training.step import TrainingStep
from tests.support.ranks import run_ranks
from tests.support.text_material import WORDS, make_tokenizer
from tests.support.toys import VOCABULARY, toy_model

SENTENCES, STEPS, TOLERANCE = 64, 2, 1e-5
TOKENIZER = make_tokenizer(WORDS[: VOCABULARY - 5])


class Case(NamedTuple):
    """One way to train on 64 sentences; three ranks have 22, 21 and 21."""

    stage: int
    chunk: str = "null"
    batch: str = "batch.packed=true"
    objective: str = "objective.fidelity=sampled"
    columns: int = 1
    faulty: bool = False

    def recipe(self) -> Recipe:
        return load_recipe(
            "quickstart",
            [
                *(f"batch.sentences={SENTENCES}", f"batch.chunk={self.chunk}", self.batch, self.objective),
                *("objective.rtd_weight=0.3", "objective.hard_negative_weight=0.5", "model.projection=batchnorm"),
                *("optimizer.learning_rate=3e-4", "optimizer.eps=1e-4", "optimizer.clip=0.5"),
                "objective.temperature=0.1",
            ],
        )

    def config(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage}
        if self.stage == 3:
            zero["stage3_param_persistence_threshold"] = 0
        return complete_config({"zero_optimization": zero}, self.recipe(), world_size())


OFFICIAL, PADDED, RING = "objective.fidelity=official", "batch.packed=false", "batch.exchange=ring"
# a chunk of 21 would leave one sentence to the last, and so would one of 7
CASES = [Case(0, "7", RING), Case(1, objective=OFFICIAL), Case(2, batch="batch.length_groups=3")]
CASES += [Case(3, "21", PADDED), Case(3, "7", columns=3)]
FAULTY = Case(0, faulty=True)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[int, TokenizedCorpus]:
    """Sentences, and triples in which texts repeat."""
    folder = tmp_path_factory.mktemp("corpora")
    found = {}
    for columns in (1, 3):
        names = [f"column{column}" for column in range(columns)]
        rows = [[_text(index, column) for column in range(columns)] for index in range(130)]
        lines = map("\t".join, [names, *rows])
        file = folder / f"{columns}.tsv"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        data = {"files": str(file), "columns": names, "cache_dir": str(folder), "workers": 1}
        found[columns] = tokenize(DataRecipe.model_validate(data), [TOKENIZER])
    return found


def _text(index: int, column: int) -> str:
    number = index if column == 0 else index // 2 + column
    return " ".join(f"w{(number * 7 + place * (1 + number // 55)) % 55}" for place in range(2 + number % 12))


def _trained(case: Case, corpora: dict[int, TokenizedCorpus]) -> dict[str, Tensor]:
    """Losses and statistics of the global batches, and the weights in the end."""
    recipe = case.recipe()
    tokenizers = Tokenizers.shared(TOKENIZER)
    batches = Batches(corpora[case.columns], tokenizers, recipe, rank(), world_size())
    model = toy_model(recipe.objective)
    for backbone in (model.encoder.backbone, model.discriminator.backbone):
        allow_packing(backbone)
    draw = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # no zeros: a difference can be told from a tensor's norm
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    engine = initialize(model, recipe, case.config())
    for group in engine.optimizer.param_groups:
        group["lr"] = recipe.optimizer.learning_rate
    step = TrainingStep(engine, None, recipe)
    if case.faulty:
        _taken_for_equal(step.objective)
    found: dict[str, Tensor] = {}
    for number in range(STEPS):
        batch = batches.batch(number)
        for chunk in batch.chunks:  # edits that are the same on any number of ranks
            object.__setattr__(chunk, "edited_ids", chunk.corrupted_ids)
        output = step(batch)
        optimizer_step(engine)
        for name, value in {"loss": output.loss, **output.statistics}.items():
            counts = world_size() if name.startswith("rtd_") else 1
            found[f"{name} of step {number}"] = all_mean(value) * counts
    with deepspeed.zero.GatheredParameters(list(model.parameters())):  # does nothing below ZeRO-3
        found |= {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    engine.destroy()
    return found


def _all(cases: list[Case], corpora: dict[int, TokenizedCorpus]) -> list[dict[str, Tensor]]:
    start_process_group()
    return [_trained(case, corpora) for case in cases]


def _deviation(found: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, str]:
    """The largest, and where."""
    assert found.keys() == truth.keys()
    # cosines and losses are numbers of size 1, and their means may be nearly 0
    norms = {name: true.norm().clamp_min(1e-6 if true.dim() else 1.0) for name, true in truth.items()}
    return max((float((found[name] - true).norm() / norms[name]), name) for name, true in truth.items())


def _truth(case: Case) -> Case:
    return Case(0, objective=case.objective, columns=case.columns)


@pytest.mark.slow
def test_three_ranks_learn_from_64_sentences_what_one_does(corpora, tmp_path):
    truths = list(dict.fromkeys(map(_truth, [*CASES, FAULTY])))
    (alone,) = run_ranks(_all, 1, tmp_path, truths, corpora)
    known = dict(zip(truths, alone, strict=True))
    for of_rank in run_ranks(_all, 3, tmp_path, [*CASES, FAULTY], corpora):
        *right, faulty = zip([*CASES, FAULTY], of_rank, strict=True)
        deviations = {str(case): _deviation(found, known[_truth(case)]) for case, found in right}
        assert max(deviations.values())[0] < TOLERANCE, deviations
        assert _deviation(faulty[1], known[_truth(FAULTY)])[0] > 20 * TOLERANCE


def _taken_for_equal(objective: Objective) -> None:
    """The fault: means over a rank's own rows, averaged over ranks, are another objective."""
    batch_terms, own = objective.batch_terms, [22, 21, 21][rank()]

    def unweighted(*arguments: Any) -> Parts:
        parts = batch_terms(*arguments)
        part = parts["contrastive"]
        return {**parts, "contrastive": part._replace(loss=part.loss * (SENTENCES / world_size() / own))}

    objective.batch_terms = unweighted  # type: ignore[method-assign]
