"""Which tokens a token sees: what is claimed is compared with what the networks do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, MambaConfig, MambaModel

from diffcse_scale.errors import InputError
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.model.attention import attend_both_ways, check_attention, is_causal
from diffcse_scale.model.encoder import Encoder, encode_sentences
from diffcse_scale.recipe import load_recipe
from tests.tiny_models import (
    BYTES,
    DECODER_FAMILIES,
    END,
    FAMILIES,
    SENTENCE,
    tiny_backbone,
    tiny_byte_tokenizer,
    tiny_config,
)


def sees_later(backbone, padding: int) -> bool:
    """Whether the first token's vector depends on the fifth and last, `padding` tokens of padding behind it."""
    ids = torch.tensor([[5, 6, 7, 8, 9] + [0] * padding])
    mask = torch.tensor([[1] * 5 + [0] * padding])
    other = ids.clone()
    other[0, 4] = 10
    with torch.no_grad():
        first, second = (backbone(input_ids=x, attention_mask=mask).last_hidden_state[0, 0] for x in (ids, other))
    return not torch.allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_known_to_be_causal_where_it_is(family):
    backbone = tiny_backbone(family)
    assert is_causal(backbone.config) == (not sees_later(backbone, 0)) == (family in DECODER_FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bidirectional_attention_sees_later_tokens(family, implementation):
    try:
        backbone = tiny_backbone(family, attn_implementation=implementation)
    except ValueError:
        pytest.skip(f"{family} has no {implementation} attention")
    attend_both_ways(backbone)
    # with padding there is a mask; without, sdpa gets none and relies on a flag of its own
    assert sees_later(backbone, padding=0) and sees_later(backbone, padding=2)
    assert not is_causal(backbone.config)


@pytest.mark.parametrize("family", DECODER_FAMILIES)
def test_an_exported_model_looks_both_ways_in_both_libraries(family, tmp_path):
    causal, backbone = tiny_backbone(family, vocab_size=BYTES), tiny_backbone(family, vocab_size=BYTES)
    tokenizer = tiny_byte_tokenizer()
    tokenizer.pad_token = END
    attend_both_ways(backbone)
    export_sentence_transformer(backbone, tokenizer, "mean", 32, tmp_path / "out")
    assert sees_later(AutoModel.from_pretrained(tmp_path / "out").eval(), 0)
    exported = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    # one sentence alone has no padding, several have
    for sentences in ([SENTENCE], [SENTENCE, "a dog", "the cat runs"]):
        ours = encode_sentences(Encoder(backbone, "mean"), tokenizer, sentences, max_length=32)
        np.testing.assert_allclose(exported.encode(sentences), ours, rtol=0, atol=1e-6)
        other = encode_sentences(Encoder(causal, "mean"), tokenizer, sentences, max_length=32)
        assert np.abs(other - ours).max() > 1e-2


def test_a_family_whose_attention_cannot_be_opened_says_so():
    backbone = MambaModel(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(InputError, match="MambaModel builds its attention mask by itself and stays causal"):
        attend_both_ways(backbone)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.pooling=cls"], "model.pooling cls is the first token, which in embedded sees no other"),
        (["model.pooling=last"], "set model.discriminator to a masked language model"),
        (["model.pooling=last", "objective.rtd_weight=0"], None),
        (["model.pooling=last", "model.discriminator=bert-base-uncased"], None),
        (["model.pooling=cls", "model.attention=bidirectional"], None),
    ],
)
def test_what_cannot_be_learnt_from_earlier_tokens_alone_is_refused(overrides, words):
    recipe = load_recipe("quickstart", overrides)
    check_attention(tiny_config("bert"), recipe)
    if words is None:
        check_attention(tiny_config("llama"), recipe)
        return
    with pytest.raises(InputError, match=words):
        check_attention(tiny_config("llama"), recipe)
