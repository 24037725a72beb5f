"""Every family of backbones, as a small random member: encoder, discriminator, generator.

float32; tolerances are absolute, on values of the order of 1.
"""

from __future__ import annotations

import pytest
import torch

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.backbone import (
    checkpoint_activations,
    first_layer,
    load_backbone,
    load_masked_lm,
)
from diffcse_scale.model.discriminator import ConditionalDiscriminator
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.model.fits import check_fits
from diffcse_scale.model.generator import Generator
from tests.support.tiny_models import (
    DECODER_FAMILIES,
    FAMILIES,
    MASKED_LM_FAMILIES,
    tiny_backbone,
    tiny_masked_lm,
    tiny_tokenizer,
)
from tests.support.toys import VOCABULARY, toy_chunk

WIDTH = 24
POOLINGS = [(family, pooling) for family in MASKED_LM_FAMILIES for pooling in ("cls", "mean")]
POOLINGS += [(family, pooling) for family in DECODER_FAMILIES for pooling in ("last", "mean")]
# positions that a table of 40 leaves: RoBERTa-like families begin at pad + 1, and MPNet's pad is always 1
TABLES = {"bert": 40, "electra": 40, "roberta": 39, "xlm-roberta": 39, "mpnet": 38}
COMPUTED = sorted(FAMILIES.keys() - TABLES.keys())  # by distance or by rotation


def _rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of 3, 7 and 12 tokens, padded on the right: ids and mask [3, 12]."""
    lengths = torch.tensor([3, 7, 12])
    mask = (torch.arange(12) < lengths[:, None]).long()
    ids = torch.randint(5, 20, (3, 12), generator=torch.Generator().manual_seed(seed))
    return ids * mask, mask


@pytest.mark.parametrize(("family", "pooling"), POOLINGS)
def test_a_sentence_is_encoded_as_if_it_were_alone(family, pooling):
    encoder = Encoder(tiny_backbone(family), pooling)
    ids, mask = _rows()
    together = encoder(ids, mask)
    for row, length in enumerate(mask.sum(1)):
        alone = encoder(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)
    assert float((together[0] - together[1]).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("family", DECODER_FAMILIES)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_decoder_pools_the_same_token_whichever_side_is_padded(family, pooling):
    encoder = Encoder(tiny_backbone(family), pooling)
    ids, mask = _rows()
    left = torch.stack([row.roll(int((1 - own).sum())) for row, own in zip(ids, mask, strict=True)])
    torch.testing.assert_close(encoder(left, mask.flip(1)), encoder(ids, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "pooling"), POOLINGS)
def test_every_weight_of_the_encoder_is_trained(family, pooling, tmp_path):
    # also after loading: what BERT-like models carry beside (the pooler) would be weights that no gradient reaches
    tiny_backbone(family).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    ids, mask = _rows()
    h = Encoder(backbone, pooling)(ids, mask)
    (h * torch.randn(h.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("family", TABLES)
def test_sentences_may_be_as_long_as_a_table_of_positions(family):
    backbone, limit = tiny_backbone(family), TABLES[family]
    check_fits(backbone, tiny_tokenizer(), family, {"data.max_length": limit})
    backbone(input_ids=torch.full((1, limit), 5))
    with pytest.raises(InputError, match=rf"data.max_length = {limit + 1} is more than the {limit} positions of"):
        check_fits(backbone, tiny_tokenizer(), family, {"data.max_length": limit + 1})
    with pytest.raises((IndexError, RuntimeError)):  # whatever the family says, in the middle of a run
        backbone(input_ids=torch.full((1, limit + 1), 5))


@pytest.mark.parametrize("family", COMPUTED)
def test_positions_that_are_computed_have_no_end_but_what_lies_beyond_training_is_told(family, caplog):
    backbone = tiny_backbone(family)
    check_fits(backbone, tiny_tokenizer(), family, {"data.max_length": 40})
    assert not caplog.records
    check_fits(backbone, tiny_tokenizer(), family, {"data.max_length": 41})
    assert f"data.max_length = 41 is more than the 40 tokens that {family} was trained for" in caplog.text
    assert torch.isfinite(backbone(input_ids=torch.full((1, 41), 5)).last_hidden_state).all()


class TestDiscriminator:
    @pytest.mark.parametrize("family", MASKED_LM_FAMILIES)
    def test_z_alone_enters_the_first_layer_in_slot_0(self, family):
        backbone = tiny_backbone(family)
        entering: list[torch.Tensor] = []
        ids, mask = _rows()

        def note(module, args, kwargs):
            entering.append(args[0] if args else kwargs["hidden_states"])

        with first_layer(backbone).register_forward_pre_hook(note, with_kwargs=True):
            backbone(input_ids=ids, attention_mask=mask)  # without z
        # in training too: no LayerNorm, dropout or projection of the embeddings touches z
        discriminator = ConditionalDiscriminator(backbone)
        first_layer(backbone).register_forward_pre_hook(note, with_kwargs=True)
        z = torch.randn(3, WIDTH)
        discriminator(ids, mask, z)
        discriminator.train()(ids, mask, z)
        plain, conditioned, in_training = entering
        assert torch.equal(conditioned[:, 0], z) and torch.equal(in_training[:, 0], z)
        real = mask[:, 1:].bool()
        torch.testing.assert_close(conditioned[:, 1:][real], plain[:, 1:][real], atol=1e-6, rtol=0)

    @pytest.mark.parametrize("family", MASKED_LM_FAMILIES)
    def test_z_changes_the_output_everywhere(self, family):
        discriminator = ConditionalDiscriminator(tiny_backbone(family))
        ids, mask = _rows()
        # not a constant, which a LayerNorm would not see
        ramp = torch.linspace(-1, 1, WIDTH).expand(3, WIDTH)
        first, second = discriminator(ids, mask, ramp), discriminator(ids, mask, -ramp)
        changed = (first - second).detach().abs().amax(-1)
        assert float(changed[mask.bool()].min()) > 1e-4

    @pytest.mark.parametrize("family", [family for family in MASKED_LM_FAMILIES if family != "mpnet"])
    def test_recomputed_activations_change_no_gradient(self, family):
        gradients = []
        for checkpointing in (False, True):
            backbone = tiny_backbone(family).train()
            if checkpointing:
                checkpoint_activations(backbone)
            discriminator, (ids, mask) = ConditionalDiscriminator(backbone), _rows()
            z = [torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in (0, 1)]
            torch.manual_seed(0)
            # two calls before one backward: each recomputation must find its own z
            hidden = torch.stack([discriminator(ids, mask, one) for one in z])
            (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
            gradients.append([*(one.grad for one in z), *(p.grad for p in backbone.parameters() if p.grad is not None)])
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)

    def test_a_family_that_cannot_recompute_says_so(self):
        with pytest.raises(InputError, match=r"MPNetModel cannot recompute activations; set model\.gradient_checkpoin"):
            checkpoint_activations(tiny_backbone("mpnet"))


@pytest.mark.parametrize("family", MASKED_LM_FAMILIES)
def test_a_loaded_generator_is_the_whole_model(family, tmp_path):
    """The choice of a token fused with the vocabulary head, its bias included, its weights tied to the embeddings."""
    whole = tiny_masked_lm(family, vocab_size=VOCABULARY, initializer_range=0.5)
    whole.save_pretrained(tmp_path)
    chunk, _ = toy_chunk()
    generator = Generator(load_masked_lm(str(tmp_path)), "official", [0, 1, 2], seed=0)
    generator.model.eval()  # dropout off, so that there is one answer
    ids, mask = chunk.corrupted_ids.flatten(0, 1), chunk.attention_mask.flatten(0, 1)
    expected = whole(input_ids=ids, attention_mask=mask).logits.argmax(-1) * mask
    expected[:, 0] = chunk.input_ids.flatten(0, 1)[:, 0]
    assert torch.equal(generator.edit(chunk).flatten(0, 1), expected)
    assert len(expected.unique()) > 10
