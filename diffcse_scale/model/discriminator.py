"""The conditional discriminator: which tokens were replaced, given only the edit and the embedding of the original."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffcse_kernels import RTDCounts, replaced_token_bce
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffcse_scale.model.backbone import first_layer
from diffcse_scale.model.packing import first_tokens, packs, token_vectors


class ConditionalDiscriminator(nn.Module):
    """A backbone that reads the edited sentence with z in place of its first token.

    z replaces slot 0 of the hidden states that enter the first layer, after the embeddings' LayerNorm and dropout. It
    gets no position or type embedding (DiffCSE, section 3; `cls_input` in the official program). A pre-hook on the
    first layer does this for every family.

    Args:
        condition_width: width of z if the backbone is not a copy of the encoder; z then enters through a learnt linear
            map. None if it is a copy.
    """

    def __init__(self, backbone: PreTrainedModel, condition_width: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.config.hidden_size
        self.map = nn.Identity() if condition_width is None else nn.Linear(condition_width, width)
        self._condition: Tensor | None = None
        self._first_tokens: Tensor | None = None  # where the rows begin, only if they are packed
        first_layer(backbone).register_forward_pre_hook(self._insert_condition, with_kwargs=True)

    def _insert_condition(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._condition is not None, "the discriminator was called without z"
        hidden = args[0] if args else kwargs["hidden_states"]
        z = self._condition.to(hidden.dtype)
        if self._first_tokens is None:
            hidden = torch.cat([z[:, None], hidden[:, 1:]], dim=1)
        else:
            hidden = hidden.index_copy(1, self._first_tokens, z[None])
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def forward(
        self, edited_ids: Tensor, attention_mask: Tensor, condition: Tensor, real: Tensor | None = None
    ) -> Tensor:
        """edited_ids, attention_mask: [B, L] int64; condition: z [B, width of z]; real: as `Chunk.real`.

        Returns:
            [B, L, H], meaningless on padding.
        """
        self._condition = self.map(condition)
        if real is not None and packs(self.backbone.config, edited_ids.shape[1]):
            self._first_tokens = first_tokens(real, *edited_ids.shape)
        try:
            vectors = token_vectors(self.backbone, edited_ids, attention_mask, real).last_hidden_state
            assert vectors is not None
            return vectors
        finally:
            self._condition = self._first_tokens = None


class RTDLoss(NamedTuple):
    """Replaced-token detection over some rows, as sums, so that chunks and ranks can be added up."""

    loss_sum: Tensor  # 0-dim, over the `RTDHead.positions` of the attention mask
    counts: RTDCounts  # over real tokens


class RTDHead(nn.Linear):
    """One logit per token (`sampled`) or two classes (`official`), and the loss on them.

    This module is the linear layer itself, not a module that holds one, because ZeRO-3 gathers a module's own
    parameters when it is called.
    """

    def __init__(self, width: int, fidelity: str) -> None:
        super().__init__(width, 2 if fidelity == "official" else 1)
        self.official = fidelity == "official"

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        original_ids: Tensor | None = None,
        edited_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> RTDLoss | Tensor:
        """hidden: [B, L, H]; the others [B, L] int64. A token is replaced if its edited and original ids differ.

        Returns:
            The loss; if only `hidden` is given, the logits that each token was replaced, [B, L] float32.
        """
        if original_ids is None or edited_ids is None or attention_mask is None:
            logits = super().forward(hidden).float()
            return logits[..., 1] - logits[..., 0] if self.official else logits.squeeze(-1)
        if self.official:
            return self._official(hidden, original_ids, edited_ids, attention_mask)
        loss_sum, counts = replaced_token_bce(
            hidden.flatten(0, 1),
            self.weight.squeeze(0),
            self.bias.squeeze(0),
            original_ids.flatten(),
            edited_ids.flatten(),
            attention_mask.flatten().bool(),
        )
        return RTDLoss(loss_sum, counts)

    def positions(self, attention_mask: Tensor) -> Tensor:
        """How many tokens the loss is summed over, 0-dim int64: the real tokens, or all positions in `official`."""
        return torch.ones_like(attention_mask).sum() if self.official else attention_mask.sum()

    def _official(self, hidden: Tensor, original_ids: Tensor, edited_ids: Tensor, mask: Tensor) -> RTDLoss:
        """Two-class cross-entropy over all positions, including padding (label 0), as in the official program."""
        replaced = (edited_ids != original_ids) & mask.bool()
        logits = super().forward(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss_sum = F.cross_entropy(logits.flatten(0, 1), replaced.flatten().long(), reduction="sum")
        right = (logits.argmax(-1) == replaced) & mask.bool()
        counts = RTDCounts(mask.sum(), replaced.sum(), (right & replaced).sum(), (right & ~replaced).sum())
        return RTDLoss(loss_sum, counts)
