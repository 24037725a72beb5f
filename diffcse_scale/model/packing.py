"""Run networks without padding: the real tokens of all rows follow each other in one long row.

Some positions of padding may be among them, so that sizes repeat from step to step (`text.sizes`). They are computed as
in padded rows: no real token sees them, and nobody reads them.

Everything that a network does to single tokens (projections, feed-forward, normalisation, embeddings) is then done only
for real tokens. For rows as short as sentences this is nearly all of its work. Only attention must know where a row
ends. `packed` below is registered with transformers as an attention implementation. It passes the tokens to the first
of `packed_layouts.LAYOUTS` that can take them. It works for every family that uses registered attention implementations
and forwards its keyword arguments. Tests compare the families in `FAMILIES` with padded rows.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from diffcse_scale.model.attention import is_causal
from diffcse_scale.model.packed_layouts import LAYOUTS, PackedRows, boundaries, spread

ATTENTION = "packed"
FAMILIES = (
    "bert",
    "distilbert",
    "electra",
    "llama",
    "mistral",
    "modernbert",
    "qwen2",
    "qwen3",
    "roberta",
    "xlm-roberta",
)
# these families number positions from the padding token's id + 1
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta")


def allow_packing(network: PreTrainedModel) -> None:
    """Let `network` take packed rows too, if its family supports them; padded rows still work as before."""
    if network.config.model_type in FAMILIES and network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(ATTENTION)


def packs(config: PreTrainedConfig, length: int) -> bool:
    """Whether a network takes packed rows of up to `length` tokens; its attention must cover the whole row."""
    window = getattr(config, "sliding_window", None)
    return config._attn_implementation == ATTENTION and (window is None or length <= window)


def packed_inputs(config: PreTrainedConfig, ids: Tensor, mask: Tensor, real: Tensor | None) -> dict[str, Any] | None:
    """The arguments with which a network computes only real tokens; its output is [1, T, ...].

    Args:
        ids, mask: [B, L] int64.
        real: [T] int64, the real tokens as ascending indices into the flattened `mask`; None to keep the padding.

    Returns:
        The arguments; None if the rows stay padded.
    """
    if real is None or not packs(config, ids.shape[1]):
        return None
    positions = (real % ids.shape[1])[None]
    if config.model_type in POSITIONS_AFTER_PADDING:
        assert isinstance(config.pad_token_id, int)
        positions = positions + config.pad_token_id + 1
    rows, length = ids.shape
    seen: Tensor | None = None
    if is_causal(config):
        seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril().expand(rows, 1, -1, -1)
    if real.numel() < ids.numel():
        keys = mask.bool()[:, None, None]
        seen = keys if seen is None else seen & keys
    return {
        "input_ids": ids.flatten()[real][None],
        "position_ids": positions,
        "packed_real": real,
        "packed_shape": (rows, length),
        "attention_mask": seen,  # complete, so that no family inspects the positions to build one
        "packed_bounds": boundaries(mask, real),
        "packed_causal": is_causal(config),
    }


def token_vectors(
    network: PreTrainedModel, ids: Tensor, mask: Tensor, real: Tensor | None = None, **options: Any
) -> BaseModelOutput:
    """A network's output for padded rows, computed on packed rows if `real` is given and the family supports it.

    Args:
        ids, mask, real: as in `packed_inputs`.
        options: for the network.

    Returns:
        Hidden states in rows, [B, L, H], meaningless on padding. If `options` ask for all hidden states and the rows
        were packed, only the first and the last are returned.
    """
    if "use_cache" in inspect.signature(network.forward).parameters:
        options["use_cache"] = False  # otherwise decoders keep keys and values for a next token
    inputs = packed_inputs(network.config, ids, mask, real)
    if inputs is None or real is None:
        return network(input_ids=ids, attention_mask=mask, **options)
    outputs = network(**inputs, **options)

    def in_rows(tokens: Tensor) -> Tensor:
        return spread(tokens[0], real, mask.numel()).unflatten(0, tuple(mask.shape))

    ends = outputs.hidden_states and (outputs.hidden_states[0], outputs.hidden_states[-1])
    return BaseModelOutput(
        last_hidden_state=in_rows(outputs.last_hidden_state),
        hidden_states=ends and tuple(map(in_rows, ends)),
    )


def first_tokens(real: Tensor, rows: int, length: int) -> Tensor:
    """Where each row of [rows, length] begins among the packed tokens, [rows] int64."""
    return torch.searchsorted(real, torch.arange(rows, device=real.device) * length)


def packed(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_real: Tensor | None = None,
    packed_shape: tuple[int, int] | None = None,
    packed_bounds: Tensor | None = None,
    packed_causal: bool = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention within each row of packed tokens; for padded rows, transformers' `sdpa`.

    Args:
        query, key, value: [1, heads, T, D]; keys and values may have fewer heads.
        attention_mask: for packed rows bool [B, 1, 1 or L, L], which keys a token sees; None if it sees its whole row.
        packed_real: `real` of `packed_inputs`; None if the rows are not packed.
        packed_shape: B and L.
        packed_bounds, packed_causal: as in `PackedRows`.

    Returns:
        [1, T, heads, D], and no weights.
    """
    if packed_real is None or packed_shape is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    rows = PackedRows(packed_real, *packed_shape, attention_mask, packed_bounds, packed_causal)
    layout = next(layout for layout in LAYOUTS if layout.takes(query, dropout, rows))
    return layout.attend(query, key, value, dropout, scaling, rows), None


def _mask(*arguments: Any, attention_mask: Tensor | None = None, **others: Any) -> Tensor | None:
    """The mask of padded rows. Packed rows bring a complete mask, which transformers uses without calling this."""
    if attention_mask is None:
        return None
    if attention_mask.device.type != "cpu":
        # to skip the mask, transformers would check on the host for padding, which would wait for the device
        others |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*arguments, attention_mask=attention_mask, **others)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _mask)
