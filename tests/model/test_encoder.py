"""Encoding sentences, against transformers' own padding and a plain forward pass."""

from __future__ import annotations

import pytest
import torch

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.encoder import Encoder, encode_sentences
from diffcse_scale.model.fits import check_fits
from diffcse_scale.objective.objective import Objective
from diffcse_scale.recipe import ObjectiveRecipe
from tests.support.tiny_models import WORDS, tiny_bert, tiny_llama, tiny_tokenizer
from tests.support.toys import toy_chunk, toy_model

SENTENCES = [" ".join(WORDS[:1]), " ".join(WORDS[:4]), " ".join(WORDS[1:3]), " ".join(WORDS[2:7])]


@pytest.mark.parametrize(("make", "pooling"), [(tiny_bert, "cls"), (tiny_bert, "mean"), (tiny_llama, "last")])
@pytest.mark.parametrize("pad_token", [True, False])
def test_vectors_are_those_of_each_sentence_alone(make, pooling, pad_token):
    encoder, tokenizer = Encoder(make(), pooling).train(), tiny_tokenizer()
    if not pad_token:  # most decoders come without
        tokenizer.pad_token = None
    vectors = encode_sentences(encoder, tokenizer, SENTENCES, max_length=32, batch_size=3)
    assert encoder.training
    encoder.eval()
    for sentence, vector in zip(SENTENCES, vectors, strict=True):
        ids = torch.tensor([tokenizer(sentence)["input_ids"]])
        alone = encoder(ids, torch.ones_like(ids))[0].detach()
        torch.testing.assert_close(torch.from_numpy(vector), alone, atol=1e-5, rtol=1e-5)


def test_sentences_longer_than_the_backbone_can_read_are_refused():
    backbone, tokenizer = tiny_bert(), tiny_tokenizer()
    limit = backbone.config.max_position_embeddings
    check_fits(backbone, tokenizer, "tiny", {"data.max_length": limit})
    with pytest.raises(InputError, match=rf"evaluation.max_length = {limit + 1} is more than the {limit} positions"):
        check_fits(backbone, tokenizer, "tiny", {"evaluation.max_length": limit + 1})
    with pytest.raises(InputError, match=r"data.max_length = 2 leaves no room besides the special tokens of tiny"):
        check_fits(backbone, tokenizer, "tiny", {"data.max_length": 2})


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = toy_model(ObjectiveRecipe(rtd_weight=0.5))
        if checkpointing:
            for part in (model.encoder, model.discriminator):
                part.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        chunk, edited = toy_chunk()
        model(Objective(model.objective).step, [chunk], [edited]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
