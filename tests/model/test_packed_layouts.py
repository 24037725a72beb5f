"""Packed rows through kernels that take them as they are: the same numbers as padded rows.

A GPU's kernels are stood in for by plain PyTorch with their signatures, which holds what they demand; the truth is the
padded computation, in float64, to 1e-9 of each norm.
"""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen as torchs

from diffcse_scale.model import packed_layouts
from diffcse_scale.model.attention import attend_both_ways
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.model.generator import Generator
from diffcse_scale.model.packed_layouts import LAYOUTS, PackedRows, boundaries
from diffcse_scale.model.packing import allow_packing
from tests.support.comparisons import assert_equal
from tests.support.packed_rows import DECODERS, MASKED_LM, backbone, ragged
from tests.support.tiny_models import WIDE, tiny_masked_lm

WIDTH = {"hidden_size": 32, "head_dim": 16}  # heads of 16: the kernels want multiples of 8


def attention(q, k, v, bounds, longest, scale, causal):
    """Of each row by itself."""
    assert bounds.dtype == torch.int32 and bounds[0] == 0 and bounds[-1] == len(q) == len(k) == len(v)
    lengths = bounds.diff()
    assert (lengths >= 0).all() and lengths.max() <= longest and isinstance(longest, int)
    assert all(tensor.dim() == 3 and tensor.stride(-1) == 1 for tensor in (q, k, v))
    rows = zip(*(tensor.split(lengths.tolist()) for tensor in (q, k, v)), strict=True)
    found = [
        F.scaled_dot_product_attention(
            *(tensor.transpose(0, 1)[None] for tensor in row), is_causal=causal, scale=scale, enable_gqa=True
        )[0].transpose(0, 1)
        for row in rows
        if len(row[0])
    ]
    return torch.cat(found)


class Kernels:
    """Stand-ins that count their calls."""

    def __init__(self):
        self.calls = {"varlen": 0, "flash": 0}

    def varlen(self, q, k, v, bounds, bounds_k, longest, longest_k, *, scale, window_size, enable_gqa):
        assert bounds is bounds_k and longest == longest_k and window_size in ((-1, 0), (-1, -1))
        assert enable_gqa == (q.shape[1] != k.shape[1])
        self.calls["varlen"] += 1
        return attention(q, k, v, bounds, longest, scale, window_size == (-1, 0))

    def flash(self, q, k, v, bounds, bounds_k, longest, longest_k, dropout_p, softmax_scale, causal):
        self.calls["flash"] += 1
        self.dropout = dropout_p
        return attention(q, k, v, bounds, longest, softmax_scale, causal)


@pytest.fixture(params=["varlen", "flash"])
def kernels(request, monkeypatch):
    found = Kernels()
    monkeypatch.setattr(packed_layouts, "VARLEN_DEVICES", {"cpu"})
    monkeypatch.setattr(packed_layouts, "HALVES", (torch.float64, torch.float32))
    monkeypatch.setattr(packed_layouts, "KERNELS", {request.param: getattr(found, request.param)})
    found.name = request.param
    return found


def embeddings(encoder, chunk):
    encoder.zero_grad()
    h = encoder(chunk.input_ids.flatten(0, 1), chunk.attention_mask.flatten(0, 1), chunk.real)
    (h * torch.linspace(-1, 1, h.numel(), dtype=h.dtype).view_as(h)).sum().backward()
    return [h.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)]


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("family", [*MASKED_LM, *DECODERS])
def test_embeddings_and_their_gradients_are_those_of_padded_rows(family, filled, kernels):
    padded, packed, _ = ragged(filled)
    encoder = Encoder(backbone(family, **WIDTH), "mean")
    for one, other in zip(embeddings(encoder, padded), embeddings(encoder, packed), strict=True):
        assert_equal(one, other)
    assert kernels.calls[kernels.name] == encoder.backbone.config.num_hidden_layers


def test_a_decoder_that_was_opened_sees_both_ways(kernels):
    padded, packed, _ = ragged()
    network = backbone("qwen3", **WIDTH)
    attend_both_ways(network)
    for one, other in zip(*(embeddings(Encoder(network, "mean"), chunk) for chunk in (padded, packed)), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("filled", [False, True])
def test_the_generator_writes_the_same_tokens(filled, kernels):
    padded, packed, _ = ragged(filled)
    model = tiny_masked_lm("bert", **{"vocab_size": 60, **WIDE.get("bert", {}), **WIDTH})
    allow_packing(model)
    generator = Generator(model, "sampled", [0, 2], seed=3)
    assert torch.equal(generator.edit(padded), generator.edit(packed))
    assert kernels.calls[kernels.name] == 2


def test_with_dropout_only_flash_attn_takes_the_rows_as_they_are(kernels):
    _, packed, _ = ragged()
    network = backbone("bert", **WIDTH, attention_probs_dropout_prob=0.25).train()
    embeddings(Encoder(network, "mean"), packed)
    assert kernels.calls == {"varlen": 0, "flash": 2 if kernels.name == "flash" else 0}
    if kernels.name == "flash":
        assert kernels.dropout == 0.25


def test_where_a_row_and_its_padding_begin(monkeypatch):
    monkeypatch.setattr(packed_layouts, "VARLEN_DEVICES", {"cpu"})
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    real = torch.tensor([0, 1, 3, 4, 5, 6, 7, 8, 9, 11])  # position 3, 9 and 11 are padding
    assert boundaries(mask, real).tolist() == [0, 2, 3, 7, 7, 8, 10]


@pytest.mark.parametrize(
    ("query", "takes"),
    [
        (torch.zeros(1, 2, 5, 16, dtype=torch.bfloat16), "varlen"),
        (torch.zeros(1, 2, 5, 16), "padded"),  # float32
        (torch.zeros(1, 2, 5, 12, dtype=torch.bfloat16), "padded"),
        (torch.zeros(1, 2, 5, 264, dtype=torch.bfloat16), "padded"),
    ],
)
def test_what_the_kernels_cannot_take_is_padded(query, takes, monkeypatch):
    monkeypatch.setattr(packed_layouts, "KERNELS", {"varlen": None})
    rows = PackedRows(torch.arange(5), 1, 5, bounds=torch.tensor([0, 5, 5]))
    first = next(layout.name for layout in LAYOUTS if layout.takes(query, 0.0, rows))
    assert takes in first
    without = next(layout.name for layout in LAYOUTS if layout.takes(query, 0.0, rows._replace(bounds=None)))
    assert "padded" in without


def test_under_autocast_the_kernels_compute_in_its_precision():
    query = torch.zeros(1, 2, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert {tensor.dtype for tensor in packed_layouts._as_one_row(query, query)} == {torch.bfloat16}
    assert packed_layouts._as_one_row(query)[0].dtype == torch.float32


def test_this_torch_has_the_function_and_its_options():
    given = {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size", "enable_gqa"}
    assert given <= inspect.signature(torchs.varlen_attn).parameters.keys()


def test_a_cpu_asks_for_no_kernel():
    assert boundaries(torch.ones(2, 3), torch.arange(6)) is None
