"""The frozen generator, with real masked language models of several families and random weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedTokenizerFast,
)

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.backbone import load_masked_lm, load_tokenizers
from diffcse_scale.model.fits import check_fits, check_same_vocabulary
from diffcse_scale.model.generator import Generator, load_generator
from diffcse_scale.recipe_file import load_recipe
from tests.support.tiny_models import MASKED_LM_FAMILIES, tiny_config, tiny_masked_lm
from tests.support.toys import VOCABULARY, toy_chunk

SIZES = {"vocab_size": VOCABULARY, "initializer_range": 0.5}
FAMILIES = {
    **{family: partial(tiny_masked_lm, family, **SIZES) for family in MASKED_LM_FAMILIES},
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=32, initializer_range=0.5)
    ),
}
SPECIAL = [0, 1, 2]


def _model(family):
    torch.manual_seed(0)
    return FAMILIES[family]()


@pytest.mark.parametrize("family", FAMILIES)
def test_official_edits_are_the_argmax_of_the_whole_model(family):
    model = _model(family)
    whole = copy.deepcopy(model).eval()
    chunk, _ = toy_chunk()
    generator = Generator(model, "official", SPECIAL, seed=0)
    generator.model.eval()  # dropout off, so that there is one answer
    edited = generator.edit(chunk)
    mask = chunk.attention_mask.flatten(0, 1)
    expected = whole(input_ids=chunk.corrupted_ids.flatten(0, 1), attention_mask=mask).logits.argmax(-1) * mask
    expected[:, 0] = chunk.input_ids.flatten(0, 1)[:, 0]
    assert torch.equal(edited.flatten(0, 1), expected)


def test_official_generator_keeps_its_dropout():
    generator = Generator(_model("bert"), "official", SPECIAL, seed=0)
    chunk, _ = toy_chunk()
    assert not torch.equal(generator.edit(chunk), generator.edit(chunk))


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_follow_the_softmax_of_the_whole_model(family):
    model = _model(family)
    whole = copy.deepcopy(model).eval()
    chunk, _ = toy_chunk(sentences=1)
    chunk = replace(chunk, corrupted=torch.tensor([1]))  # one position, drawn many times
    logits = (
        whole(input_ids=chunk.corrupted_ids.flatten(0, 1), attention_mask=chunk.attention_mask.flatten(0, 1))
        .logits[0, 1]
        .detach()
    )
    logits[SPECIAL] = float("-inf")
    generator = Generator(model, "sampled", SPECIAL, seed=0)
    draws = []
    for row in range(400):
        one = replace(chunk, row_ids=torch.tensor([[2 * row, 2 * row + 1]]))
        draws.append(int(generator.edit(one).flatten()[1]))
    observed = torch.bincount(torch.tensor(draws), minlength=VOCABULARY) / len(draws)
    # total variation of 400 draws from about 57 outcomes is about 0.15; a wrong distribution is far off
    assert float((observed - logits.softmax(0)).abs().sum() / 2) < 0.25
    assert not set(draws) & set(SPECIAL)


def test_only_corrupted_positions_are_edited():
    chunk, _ = toy_chunk()
    edited = Generator(_model("bert"), "sampled", SPECIAL, seed=0).edit(chunk)
    untouched = torch.ones(edited.numel(), dtype=torch.bool)
    untouched[chunk.corrupted] = False
    assert torch.equal(edited.flatten()[untouched], chunk.input_ids.flatten()[untouched])
    assert not torch.equal(edited, chunk.input_ids)


def test_a_rows_edit_does_not_depend_on_the_batch_it_is_in():
    generator = Generator(_model("bert"), "sampled", SPECIAL, seed=0)
    chunk, _ = toy_chunk()
    together = generator.edit(chunk)
    length = chunk.input_ids.shape[-1]
    for n in range(len(chunk.input_ids)):
        inside = (chunk.corrupted // (2 * length)) == n
        alone = type(chunk)(
            chunk.input_ids[n : n + 1],
            chunk.attention_mask[n : n + 1],
            chunk.corrupted_ids[n : n + 1],
            chunk.corrupted[inside] - n * 2 * length,
            chunk.row_ids[n : n + 1],
        )
        assert torch.equal(generator.edit(alone)[0], together[n])


def test_the_generator_is_frozen():
    generator = Generator(_model("bert"), "sampled", SPECIAL, seed=0)
    assert not any(parameter.requires_grad for parameter in generator.model.parameters())
    assert not generator.head.weight.requires_grad
    assert not generator.model.training


def test_a_head_that_is_no_vocabulary_is_refused():
    # DeBERTa's newer head multiplies by the word embeddings itself; what it calls its output layer is H x H
    model = DebertaV2ForMaskedLM(DebertaV2Config(**tiny_config("deberta-v2").to_dict() | {"legacy": False}))
    with pytest.raises(InputError, match="DebertaV2ForMaskedLM has no linear vocabulary head"):
        Generator(model, "sampled", SPECIAL, seed=0)


def _padded(family, rows):
    """The family's generator with so many embeddings more, whose logits are beyond all others."""
    model = _model(family)
    model.resize_token_embeddings(VOCABULARY + rows, mean_resizing=False)
    model.get_output_embeddings().bias.data[VOCABULARY:] = 100.0
    return model


@pytest.mark.parametrize("fidelity", ["sampled", "official"])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_rows_beyond_the_tokenizers_ids_change_nothing(family, fidelity):
    chunk, _ = toy_chunk()
    edited = []
    for model in (_model(family), _padded(family, 4)):
        generator = Generator(model, fidelity, SPECIAL, seed=0, known=range(VOCABULARY))
        generator.model.eval()
        edited.append(generator.edit(chunk))
    assert torch.equal(*edited)


def test_a_padded_generator_is_loaded_with_the_ids_of_its_tokenizer(tmp_path):
    plain = load_recipe("quickstart")
    model, tokenizers = load_masked_lm("embedded"), load_tokenizers(plain.model)
    ids = len(tokenizers.encoder)
    model.resize_token_embeddings(ids + 64, mean_resizing=False)
    for part in (model, tokenizers.encoder):
        part.save_pretrained(tmp_path)
    recipe = load_recipe("quickstart", [f"model.generator={tmp_path}"])
    padded, own = (load_generator(each, tokenizers, torch.device("cpu")) for each in (recipe, plain))
    assert padded.head.out_features == ids + 64
    assert torch.equal(padded.forbidden, own.forbidden) and len(own.forbidden) == ids
    long = load_recipe("quickstart", [f"model.generator={tmp_path}", "data.max_length=200"])
    with pytest.raises(InputError, match=rf"data.max_length = 200 is more than the 128 positions of {tmp_path}"):
        load_generator(long, tokenizers, torch.device("cpu"))


def test_a_generator_whose_numbers_are_not_finite_is_refused(tmp_path):
    """Its weights are finite, and their products are not: it would write one token everywhere, or one beyond all."""
    recipe = load_recipe("quickstart", [f"model.generator={tmp_path}"])
    model, tokenizers = load_masked_lm("embedded"), load_tokenizers(recipe.model)
    with torch.no_grad():
        model.get_input_embeddings().weight[100:200] = 1e38
    for part in (model, tokenizers.encoder):
        part.save_pretrained(tmp_path)
    for fidelity in ("sampled", "official"):
        asked = load_recipe("quickstart", [f"model.generator={tmp_path}", f"objective.fidelity={fidelity}"])
        with pytest.raises(
            InputError, match=r"gives numbers that are not finite \(NaN or infinity\), computed in float32"
        ):
            load_generator(asked, tokenizers, torch.device("cpu"))


@pytest.mark.parametrize("fidelity", ["sampled", "official"])
def test_an_id_that_no_token_has_is_never_written(fidelity):
    model, gaps = _model("bert"), [7, 30]
    model.get_output_embeddings().bias.data[gaps] = 100.0
    chunk, _ = toy_chunk()
    known = [index for index in range(VOCABULARY) if index not in gaps]
    written = Generator(model, fidelity, SPECIAL, seed=0, known=known).edit(chunk)
    assert not torch.isin(written[written != chunk.original_ids], torch.tensor(gaps)).any()


def _tokenizer(words):
    from tokenizers import Tokenizer, models

    vocabulary = {word: index for index, word in enumerate(words)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    )


def test_a_network_needs_an_embedding_for_every_id_of_its_tokenizer():
    model = _model("bert")
    check_fits(model, _tokenizer(map(str, range(VOCABULARY))), "bert", {})
    check_fits(model, _tokenizer("abc"), "bert", {})
    message = f"bert has embeddings for {VOCABULARY} ids, but its tokenizer writes ids up to {VOCABULARY}; give it"
    with pytest.raises(InputError, match=message):
        check_fits(model, _tokenizer(map(str, range(VOCABULARY + 1))), "bert", {})


def test_vocabularies_are_compared_by_content():
    check_same_vocabulary(_tokenizer("abc"), _tokenizer("abc"), ("one", "two"))
    with pytest.raises(InputError, match="between one and generator two: id 1 is 'b' in one and 'x' in the other"):
        check_same_vocabulary(_tokenizer("abc"), _tokenizer("axc"), ("one", "two"))
    with pytest.raises(InputError, match="id 2 is 'c' in one and 'nothing'"):
        check_same_vocabulary(_tokenizer("abc"), _tokenizer("ab"), ("one", "two"))
