"""The tokens in colour: what the generator changed, and what the discriminator of the checkpoint says."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer

from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.report.edited_sentences import Judgement, Token, judgements
from diffcse_scale.runs.read import read_runs
from tests.support.toy_run import CHECKPOINT, write_run

SENTENCES = ["two dogs are chasing a cat in the park", "a girl reads a book", "nobody sings"]


def test_originals_and_edits_together_are_the_sentences(world, two_runs):
    runs = read_runs(two_runs)
    for judged in judgements(runs, [SENTENCES, SENTENCES]):
        assert (judged.step, judged.problem) == (CHECKPOINT, "")
        tokenizer = AutoTokenizer.from_pretrained(world / "model")
        for sentence, tokens in zip(SENTENCES, judged.sentences, strict=True):
            ids = tokenizer(sentence, add_special_tokens=False, truncation=True, max_length=14)["input_ids"]
            originals = [token.original if token.replaced else token.text for token in tokens]
            assert originals == tokenizer.convert_ids_to_tokens(ids)
        assert any(token.replaced for tokens in judged.sentences for token in tokens)


def test_runs_of_one_generator_judge_the_same_edits_with_their_own_discriminators(two_runs):
    first, second = judgements(read_runs(two_runs), [SENTENCES, SENTENCES])
    edits = [[(t.text, t.original) for tokens in judged.sentences for t in tokens] for judged in (first, second)]
    assert edits[0] == edits[1]
    said = [torch.tensor([t.probability for ts in judged.sentences for t in ts]) for judged in (first, second)]
    assert (said[0] - said[1]).abs().max() > 0.05


@torch.no_grad()
def test_probabilities_are_those_of_the_checkpoints_weights(two_runs):
    """Against a forward pass written out: encoder, projection, z in the first slot, head, one sentence at a time."""
    (run,) = read_runs(two_runs[:1])
    (judged,) = judgements([run], [SENTENCES])
    tokenizers = load_tokenizers(run.recipe.model)
    model = build_model(run.recipe, tokenizers).eval()
    file = run.path / "checkpoints" / f"step-{CHECKPOINT:08d}" / "mp_rank_00_model_states.pt"
    model.load_state_dict(torch.load(file, weights_only=True)["module"])
    tokenizer = tokenizers.encoder
    for sentence, tokens in zip(SENTENCES, judged.sentences, strict=True):
        ids = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=16)["input_ids"]
        edited = ids.clone()
        edited[0, 1:-1] = torch.tensor(tokenizer.convert_tokens_to_ids([token.text for token in tokens]))
        z = model.projection(model.encoder(ids, torch.ones_like(ids)))
        hidden = model.discriminator(edited, torch.ones_like(ids), z)
        expected = torch.sigmoid(hidden @ model.rtd_head.weight[0] + model.rtd_head.bias)
        said = torch.tensor([token.probability for token in tokens])
        torch.testing.assert_close(said, expected[0, 1:-1], rtol=0, atol=1e-5)


def test_the_official_generator_may_change_every_token(world, tmp_path):
    (run,) = read_runs([write_run(world, tmp_path / "run", "objective.fidelity=official")])
    (judged,) = judgements([run], [SENTENCES])
    assert judged.problem == "" and len(judged.sentences) == len(SENTENCES)
    assert judged.count(True, True) + judged.count(True, False) > sum(map(len, judged.sentences)) / 2


def test_what_is_right_is_counted():
    tokens = [Token("a", None, 0.2), Token("b", "c", 0.9), Token("d", "e", 0.4), Token("f", None, 0.7)]
    judged = Judgement(0, 1, [tokens[:2], tokens[2:]])
    assert [token.right for token in tokens] == [True, True, False, False]
    found, missed = judged.count(True, True), judged.count(True, False)
    kept, alarms = judged.count(False, True), judged.count(False, False)
    assert (found, missed, kept, alarms) == (1, 1, 1, 1)
