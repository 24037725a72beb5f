"""Networks without padding: the real tokens of all rows one after another, as one long row.

Some positions of padding may be among them, so that sizes repeat from step to step (`text.sizes`). They are computed as
in padded rows: no real token sees them, and nobody reads them.

All that a network does to a token by itself (projections, feed-forward, normalisation, embeddings) is then done to real
tokens only; at the lengths of sentences that is nearly all of its work. Attention alone has to know where a row ends:
`packed` below, registered with transformers as an implementation of attention, hands the tokens to the first of
`packed_layouts.LAYOUTS` that can take them. It serves every family that leaves attention to such an implementation and
hands on what it is called with; the families of `FAMILIES` are compared with padding in the tests.
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
# these number positions from the padding token's id + 1
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta")


def allow_packing(network: PreTrainedModel) -> None:
    """Let `network` take packed rows too, if its family can; padded ones it takes as before."""
    if network.config.model_type in FAMILIES and network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(ATTENTION)


def packs(config: PreTrainedConfig, length: int) -> bool:
    """Whether a network takes rows of up to `length` tokens packed: its attention must reach over the whole row."""
    window = getattr(config, "sliding_window", None)
    return config._attn_implementation == ATTENTION and (window is None or length <= window)


def packed_inputs(config: PreTrainedConfig, ids: Tensor, mask: Tensor, real: Tensor | None) -> dict[str, Any] | None:
    """What to call a network with, so that it computes real tokens only; its output is [1, T, ...].

    Args:
        ids, mask: [B, L] int64.
        real: [T] int64, the real tokens as ascending indices into the flattened `mask`; None to keep the padding.

    Returns:
        None where the rows stay padded.
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
        "attention_mask": seen,  # whole, so that no family makes one from the positions, which it would look at
        "packed_bounds": boundaries(mask, real),
        "packed_causal": is_causal(config),
    }


def token_vectors(
    network: PreTrainedModel, ids: Tensor, mask: Tensor, real: Tensor | None = None, **options: Any
) -> BaseModelOutput:
    """What a network computes for padded rows, packed on the way where `real` is given and its family allows it.

    Args:
        ids, mask, real: as for `packed_inputs`.
        options: for the network.

    Returns:
        Hidden states in rows, [B, L, H], of no meaning on padding; where the rows were packed, of all hidden states
        that `options` ask for the first and the last.
    """
    if "use_cache" in inspect.signature(network.forward).parameters:
        options["use_cache"] = False  # decoders would keep keys and values for a next token
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
    """Where each of the rows [rows, length] begins among the packed tokens, [rows] int64."""
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
    """Attention within each row of packed tokens; of rows that are padded, what transformers' `sdpa` computes.

    Args:
        query, key, value: [1, heads, T, D]; keys and values may have fewer heads.
        attention_mask: of packed rows bool [B, 1, 1 or L, L], which keys a token sees; None for all of its row.
        packed_real: as in `packed_inputs`; None where nothing is packed.
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
    """What each token sees: of packed rows nothing, unless their mask is whole, which is not asked for here."""
    if attention_mask is None:
        return None
    if attention_mask.device.type != "cpu":
        # whether there is any padding, so that a mask can be spared, is read on the host: it would wait for the device
        others |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*arguments, attention_mask=attention_mask, **others)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _mask)
