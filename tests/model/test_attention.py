"""Which tokens a token sees: what is claimed is compared with what the networks do."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, MambaConfig, MambaModel

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.attention import (
    attend_both_ways,
    attention_kernels,
    check_attention,
    choose_attention_kernels,
    is_causal,
)
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.model.encoder import Encoder, encode_sentences
from diffcse_scale.model.generator import load_generator
from diffcse_scale.model_folder.load import load_model
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.corpus import CorpusReport
from diffcse_scale.training.console import print_start
from diffcse_scale.training.schedule import make_plan
from tests.support.tiny_models import (
    BYTES,
    DECODER_FAMILIES,
    END,
    FAMILIES,
    SENTENCE,
    tiny_backbone,
    tiny_byte_tokenizer,
    tiny_config,
    tiny_tokenizer,
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
    with pytest.raises(InputError, match="MambaModel builds its attention mask itself and stays causal"):
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


@pytest.fixture
def cudnn_preferred():
    """As torch comes."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize("allowed", [False, True])
def test_cudnn_computes_attention_only_where_the_recipe_says_so(allowed, cudnn_preferred):
    recipe = load_recipe("quickstart", [f"model.cudnn_attention={str(allowed).lower()}"] if allowed else [])
    tokenizers = load_tokenizers(recipe.model)
    for load in (
        lambda: build_model(recipe, tokenizers),
        lambda: load_generator(recipe, tokenizers, torch.device("cpu")),
    ):
        torch.backends.cuda.enable_cudnn_sdp(not allowed)
        load()
        assert torch.backends.cuda.cudnn_sdp_enabled() == allowed
        assert ("cuDNN" in attention_kernels()) == allowed


def test_what_loads_a_model_without_a_recipe_leaves_cudnn_out(cudnn_preferred, toy_world):
    load_model(toy_world / "model", "cls", device="cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


class SentencesOf(str):
    losses = "nothing lost"
    first = ("A first [row].",)
    columns = 2
    report = CorpusReport(8, 0, 0, 0, 0, 8, columns=("query", "answer"))

    def rows(self, indices, view=0):
        return [np.array([5 + view, 6]) for _ in indices]


def test_the_start_table_names_the_attention_kernels(capsys):
    recipe = load_recipe("quickstart")
    engine = SimpleNamespace(
        zero_optimization_stage=lambda: 2,
        zero_offload_optimizer=lambda: None,
        device=torch.device("cpu"),
        basic_optimizer=torch.optim.AdamW([torch.zeros(1)]),
    )
    choose_attention_kernels(True)
    start = recipe, make_plan(recipe, 64, 2, 1), "float32", engine, SentencesOf("a corpus"), tiny_tokenizer()
    print_start(*start)
    choose_attention_kernels()
    print_start(*start)
    first, second = capsys.readouterr().out.split("recipe quickstart")[1:]
    assert "A first [row]." in first
    assert "query is the sentence, answer is the positive" in first
    words = tiny_tokenizer().convert_ids_to_tokens
    assert f"{' '.join(words([5, 6]))}   |   {' '.join(words([6, 6]))}" in first
    assert "attention kernel" in first and "cuDNN" in first
    assert "8 sentences; nothing lost" in first
    assert "the CPU, 1 threads per rank" in second and "AdamW" in second
    assert "attention kernel" in second and "cuDNN" not in second
