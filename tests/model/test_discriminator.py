"""The conditional discriminator and its loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diffcse_scale.model.discriminator import ConditionalDiscriminator, RTDHead
from tests.support.toys import toy_backbone, toy_chunk


def test_z_stands_in_the_place_of_the_first_embedded_token():
    backbone = toy_backbone().eval()
    chunk, edited = toy_chunk()
    ids, mask = edited.flatten(0, 1), chunk.attention_mask.flatten(0, 1)
    z = torch.randn(len(ids), 32)
    # the same by hand: embed, replace, run the layers
    embedded = backbone.embeddings(input_ids=ids)
    embedded = torch.cat([z[:, None], embedded[:, 1:]], dim=1)
    additive = (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
    expected = backbone.encoder(embedded, attention_mask=additive).last_hidden_state
    found = ConditionalDiscriminator(backbone)(ids, mask, z)
    real = mask.bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)


def test_the_gradient_reaches_z():
    chunk, edited = toy_chunk()
    z = torch.randn(16, 32, requires_grad=True)
    hidden = ConditionalDiscriminator(toy_backbone())(edited.flatten(0, 1), chunk.attention_mask.flatten(0, 1), z)
    hidden.square().sum().backward()
    assert bool((z.grad.abs().sum(1) > 0).all())


@pytest.mark.parametrize("fidelity", ["sampled", "official"])
def test_loss_and_counts_are_those_of_the_definition(fidelity):
    torch.manual_seed(0)
    chunk, edited = toy_chunk()
    original, edited, mask = (t.flatten(0, 1) for t in (chunk.input_ids, edited, chunk.attention_mask))
    hidden = torch.randn(*edited.shape, 32)
    head = RTDHead(32, fidelity)
    loss_sum, counts = head(hidden, original, edited, mask)
    positions = head.positions(mask)
    replaced = (original != edited) & mask.bool()
    logits = F.linear(hidden, head.weight, head.bias)
    if fidelity == "official":  # two classes, padding included with label 0
        expected = F.cross_entropy(logits.flatten(0, 1), replaced.flatten().long(), reduction="sum")
        predicted, number = logits.argmax(-1).bool(), replaced.numel()
    else:
        each = F.binary_cross_entropy_with_logits(logits[..., 0], replaced.float(), reduction="none")
        expected, predicted, number = each[mask.bool()].sum(), logits[..., 0] > 0, int(mask.sum())
    torch.testing.assert_close(loss_sum, expected, atol=1e-4, rtol=1e-5)
    kept = mask.bool() & ~replaced
    right = (int((predicted & replaced).sum()), int((~predicted & kept).sum()))
    assert int(positions) == number
    assert tuple(map(int, counts)) == (int(mask.sum()), int(replaced.sum()), *right)


@pytest.mark.parametrize("fidelity", ["sampled", "official"])
def test_the_loss_is_that_of_the_probabilities(fidelity):
    torch.manual_seed(0)
    head, hidden, mask = RTDHead(32, fidelity), torch.randn(3, 7, 32), torch.ones(3, 7, dtype=torch.long)
    original = torch.zeros_like(mask)
    edited = torch.randint(2, mask.shape)
    probabilities = head(hidden).sigmoid()
    expected = F.binary_cross_entropy(probabilities, edited.float(), reduction="sum")
    torch.testing.assert_close(head(hidden, original, edited, mask).loss_sum, expected, atol=1e-4, rtol=1e-5)


def test_a_replaced_padding_id_is_no_replaced_token():
    # RoBERTa under `official`: padding id 1 becomes id 0, and its label stays "original"
    head = RTDHead(4, "official")
    original, edited, mask = torch.tensor([[5, 1]]), torch.tensor([[5, 0]]), torch.tensor([[1, 0]])
    assert int(head(torch.randn(1, 2, 4), original, edited, mask).counts.replaced) == 0
