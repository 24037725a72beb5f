"""The output of a run's trained discriminator on a few edited sentences, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from diffcse_scale.checkpoints.manifest import checkpoint_name, checkpoint_steps
from diffcse_scale.checkpoints.resharding import load_weights
from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.model.generator import Generator, load_generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.recipe import Recipe
from diffcse_scale.runs.read import Run
from diffcse_scale.text.batches import collate
from diffcse_scale.text.shortening import truncated_ids
from diffcse_scale.text.tokenizers import Tokenizers, special_ids


@dataclass(frozen=True)
class Token:
    """A token of an edited sentence.

    Attributes:
        original: the original token; None if the token was kept.
        probability: the discriminator's probability that the token was replaced.
    """

    text: str
    original: str | None
    probability: float

    @property
    def replaced(self) -> bool:
        """Whether the generator wrote another token than the original."""
        return self.original is not None

    @property
    def right(self) -> bool:
        """Whether the discriminator classifies the token correctly."""
        return (self.probability > 0.5) == self.replaced


@dataclass(frozen=True)
class Judgement:
    """The output of a run's discriminator on some sentences.

    Attributes:
        step: step of the checkpoint with the discriminator.
        sentences: the tokens of each sentence, without special tokens.
        problem: why there is no output; empty if there is.
    """

    run: int
    step: int
    sentences: list[list[Token]]
    problem: str = ""

    def count(self, replaced: bool, right: bool) -> int:
        """Number of tokens in all sentences with these two properties."""
        tokens = [token for sentence in self.sentences for token in sentence]
        return sum(token.replaced == replaced and token.right == right for token in tokens)


def judgements(runs: Sequence[Run], sentences: Sequence[Sequence[str]]) -> list[Judgement]:
    """Judgements of every run on its own sentences. Runs with the same generator judge the same edits."""
    return [_judgement(number, run, own) for number, (run, own) in enumerate(zip(runs, sentences, strict=True))]


def _judgement(number: int, run: Run, sentences: Sequence[str]) -> Judgement:
    def without(problem: str) -> Judgement:
        return Judgement(number, 0, [], problem)

    if run.recipe.objective.rtd_weight == 0:
        return without("This run has no discriminator: objective.rtd_weight is 0.")
    steps = checkpoint_steps(run.path / run_files.CHECKPOINTS)
    if not steps:
        return without(
            "The discriminator is in checkpoints only, and this run has none "
            f"(checkpoint_every is {run.recipe.checkpoint_every}, and there is none of the last step)."
        )
    if not sentences:
        return without("There are no sentences to edit; give some with --sentences or --data.")
    folder = run.path / run_files.CHECKPOINTS / checkpoint_name(steps[-1])
    try:
        tokenizers = load_tokenizers(run.recipe.model)
        # a fixed seed, so that runs with different seeds judge the same edits
        generator = load_generator(run.recipe.model_copy(update={"seed": 0}), tokenizers, torch.device("cpu"))
        model = build_model(run.recipe, tokenizers).eval()
        load_weights(model, folder)
    except InputError as error:
        return without(f"The discriminator cannot be read: {error}")
    assert generator is not None, "rtd_weight is not 0"
    return Judgement(number, steps[-1], judge(sentences, model, generator, tokenizers, run.recipe))


@torch.no_grad()
def judge(
    sentences: Sequence[str], model: DiffCSENetworks, generator: Generator, tokenizers: Tokenizers, recipe: Recipe
) -> list[list[Token]]:
    """Edit sentences as in training, and run the discriminator on them. `model` must be in eval mode."""
    streams = [[truncated_ids(tokenizer, sentences, recipe.data.max_length)] for tokenizer in tokenizers.streams]
    chunk = replace(collate(streams, tokenizers, recipe.objective.masking_ratio, seed=0), seed=0)
    edited = generator.edit(chunk)
    probabilities = model.logits(chunk, edited, model.project(model.encode(chunk))).sigmoid()
    columns = chunk.original_ids[:, 0], edited[:, 0], probabilities, chunk.original_mask[:, 0].bool()
    rows = zip(*columns, strict=True)
    return [_tokens(tokenizers.discriminator, *(values[real].tolist() for values in row)) for *row, real in rows]


def _tokens(
    tokenizer: PreTrainedTokenizerBase, originals: list[int], edited: list[int], probabilities: list[float]
) -> list[Token]:
    special = set(special_ids(tokenizer))
    return [
        Token(_text(tokenizer, now), None if now == before else _text(tokenizer, before), probability)
        for before, now, probability in zip(originals, edited, probabilities, strict=True)
        if before not in special
    ]


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Readable text of a token, with bytes and word-start markers decoded."""
    return tokenizer.decode([token]).strip() or tokenizer.convert_ids_to_tokens(token)
