"""Edits made ahead are those that would have been made in their turn, and a batch ahead."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from diffcse_scale.model.generator import Generator
from diffcse_scale.objective import contrastive
from diffcse_scale.objective.objective import StepOutput
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.batches import Batch
from diffcse_scale.training import step as module
from diffcse_scale.training.step import TrainingStep
from tests.support.launch import launch, metrics
from tests.support.tiny_models import tiny_masked_lm
from tests.support.toys import VOCABULARY, toy_chunk

BATCHES = 4


class Engine:
    """Keeps what it is called with."""

    def __init__(self, events):
        self.events, self.edited = events, []

    def __call__(self, function, chunks, edited):
        self.events.append("step")
        self.edited.append(edited)
        return StepOutput(None, {})

    def backward(self, loss):
        pass


@pytest.fixture
def batches():
    return [Batch(step, 0, [toy_chunk(seed=step)[0], toy_chunk(seed=100 + step)[0]], 16) for step in range(BATCHES)]


def _generator(fidelity, events):
    torch.manual_seed(0)
    model = tiny_masked_lm("bert", vocab_size=VOCABULARY, initializer_range=0.5).to(module.device())
    generator = Generator(model, fidelity, [0, 1, 2], seed=0)
    edit = generator.edit

    def noted(chunk):
        events.append("edit")
        return edit(chunk)

    generator.edit = noted
    return generator


def _step(generator, events):
    return TrainingStep(Engine(events), generator, load_recipe("quickstart"))


@pytest.mark.device
def test_a_batch_is_handed_out_when_the_next_one_is_edited(batches):
    events = []
    step = _step(_generator("sampled", events), events)
    handed = []
    for batch in step.ahead(iter(batches)):
        handed.append(batch)
        step(batch)
    edits = ["edit"] * 2  # a chunk each
    assert events == [*edits, *[*edits, "step"] * (BATCHES - 1), "step"]
    assert all(one is other for one, other in zip(handed, batches, strict=True))
    for batch, edited in zip(batches, step.engine.edited, strict=True):
        expected = [step.generator.edit(chunk.to(module.device())) for chunk in batch.chunks]
        assert all(map(torch.equal, edited, expected))
        assert not torch.equal(edited[0].cpu(), batch.chunks[0].input_ids)


def test_another_batch_than_the_one_handed_out_is_edited_in_its_turn(batches):
    events = []
    step = _step(_generator("sampled", events), events)
    next(step.ahead(iter(batches)))
    step(batches[3])
    assert all(map(torch.equal, step.engine.edited[0], [step.generator.edit(chunk) for chunk in batches[3].chunks]))


def test_a_generator_with_dropout_keeps_its_turn(batches):
    events = []
    step = _step(_generator("official", events), events)
    for batch in step.ahead(iter(batches)):
        step(batch)
    assert events == ["edit", "edit", "step"] * BATCHES


@pytest.mark.gpu
def test_a_stream_of_its_own_changes_no_edit(batches):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = module.device()
    step = _step(_generator("sampled", []), [])
    work = torch.randn(4096, 4096, device=device)
    for batch in step.ahead(iter(batches * 10)):
        for _ in range(10):  # the step before is still under way when the next edits are asked for
            work = torch.nn.functional.normalize(work @ work)
        step(batch)
    torch.cuda.synchronize()
    assert len(step.engine.edited) == 10 * BATCHES
    for batch, edited in zip(batches * 10, step.engine.edited, strict=True):
        expected = [step.generator.edit(chunk.to(device)) for chunk in batch.chunks]
        assert all(map(torch.equal, edited, expected))


@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_the_recipe_says_how_embeddings_of_different_devices_meet(batches, exchange, monkeypatch):
    asked = []

    def noted(*rows, strategy, **options):
        asked.append(strategy)
        return torch.zeros(()), SimpleNamespace(positive_cosine=1, negative_cosine=0)

    monkeypatch.setattr(contrastive, "sharded_info_nce", noted)
    step = TrainingStep(Engine([]), None, load_recipe("quickstart", [f"batch.exchange={exchange}"]))
    step.objective.batch_terms(None, torch.zeros(4, 3), [toy_chunk(sentences=2)[0]])
    assert asked == [exchange]


@pytest.mark.slow
@pytest.mark.parametrize("ring", [2, 4])
def test_on_two_and_four_ranks_a_ring_learns_what_gathering_does(toy_world, tmp_path, ring):
    found = {}
    for exchange, ranks in (("gather", 2), ("ring", ring)):
        folder = tmp_path / f"{exchange}{ranks}"
        result = launch(
            *("--recipe", str(toy_world / "toy.yaml"), "--output", str(folder), "max_steps=4", "batch.chunk=4"),
            *(f"batch.exchange={exchange}", "evaluation.data=null"),
            ranks=ranks,
        )
        assert result.returncode == 0, result.stdout
        found[exchange] = [row[name] for row in metrics(folder) for name in ("loss", "negative_cosine")]
    assert len(found["ring"]) == 8
    assert found["ring"] == pytest.approx(found["gather"], rel=1e-4)
