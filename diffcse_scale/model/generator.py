"""The frozen masked language model that edits sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffcse_kernels import sample_tokens
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffcse_scale.foundation.environment import native_bfloat16
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.randomness import derive_seed, seed_everything
from diffcse_scale.model.attention import choose_attention_kernels
from diffcse_scale.model.backbone import load_masked_lm, load_tokenizer
from diffcse_scale.model.fits import check_fits, check_same_vocabulary
from diffcse_scale.model.packing import allow_packing, packed_inputs
from diffcse_scale.model.weights import cast_parameters
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.batches import Chunk
from diffcse_scale.text.corruption import MAX_POSITIONS
from diffcse_scale.text.sizes import repeating_size
from diffcse_scale.text.tokenizers import Tokenizers, known_ids, special_ids


class Generator:
    """Writes the edited sentence. It is not an `nn.Module` of the trained model, so no optimizer or checkpoint sees it.

    There are two fidelities. `sampled` (in the paper: "sampling from a masked language model") draws a token at each
    corrupted position with dropout off. `official` takes the argmax at *every* position with dropout on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        fidelity: str,
        special_ids: Sequence[int],
        seed: int,
        known: Sequence[int] | None = None,
    ) -> None:
        """See the class.

        Args:
            model: any `AutoModelForMaskedLM`.
            special_ids: ids that are never sampled.
            known: the tokenizer's ids, ascending. No other id is written: the head may have more rows, but no text has
                trained them. None means that all rows are tokens.
        """
        self.sampled = fidelity == "sampled"
        self.seed = seed
        self.model = model.requires_grad_(False).train(not self.sampled)
        self.head = model.get_output_embeddings()
        if not isinstance(self.head, nn.Linear) or self.head.out_features != model.config.vocab_size:
            raise InputError(f"{type(model).__name__} has no linear vocabulary head, so it cannot be a generator.")
        # Without the vocabulary head, the model's own forward ends at the head's input, in every family. The head is
        # fused with the choice of a token, so no rows x vocabulary logits exist.
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if child is self.head:
                    setattr(module, name, nn.Identity())
        known = range(self.head.out_features) if known is None else known
        self.forbidden = torch.ones(known[-1] + 1, dtype=torch.bool, device=self.head.weight.device)
        self.forbidden[torch.tensor(known, dtype=torch.long)] = False
        if self.sampled:
            self.forbidden[torch.tensor(special_ids, dtype=torch.long)] = True
        self._rows: Tensor | None = None
        model.base_model.register_forward_hook(self._keep_rows)

    def _keep_rows(self, module: nn.Module, inputs: Any, outputs: Any) -> Any:
        """Pass only `self._rows` (indices into the body's flattened tokens) on to the head's transform."""
        if self._rows is not None:
            outputs["last_hidden_state"] = outputs.last_hidden_state.flatten(0, 1)[self._rows][None]
        return outputs

    @torch.no_grad()
    def edit(self, chunk: Chunk) -> Tensor:
        """Edited sentences of one chunk.

        Returns:
            int64 in the shape of `chunk.original_ids`: the ids that the discriminator sees. With `sampled` they differ
            from the original ids only at corrupted positions. With `official` padding has id 0, as in the official
            program, even if the padding id is another (RoBERTa).
        """
        if chunk.seed is not None and not self.sampled:
            seed_everything(derive_seed(chunk.seed, "generator"))  # because its dropout is on
        ids, mask = chunk.corrupted_ids.flatten(0, 1), chunk.original_mask.flatten(0, 1)
        if not self.sampled:
            return self._official(chunk, self.model(input_ids=ids, attention_mask=mask).logits.flatten(0, 1))
        real = chunk.original_real
        inputs = packed_inputs(self.model.config, ids, mask, real)
        rows = chunk.corrupted
        if inputs is None or real is None:
            inputs = {"input_ids": ids, "attention_mask": mask}
        else:
            rows = torch.searchsorted(real, rows)
        self._rows = _filled(rows)
        return self._sampled(chunk, self.model(**inputs).logits.flatten(0, 1))

    def _sampled(self, chunk: Chunk, hidden: Tensor) -> Tensor:
        length = chunk.original_ids.shape[-1]
        # a unique number for each token of the run, independent of batch, padding and rank
        row, column = chunk.corrupted // length, chunk.corrupted % length
        positions = chunk.row_ids.flatten()[row] * MAX_POSITIONS + column
        tokens = sample_tokens(
            hidden, *self._vocabulary_head(), _filled(positions), seed=self.seed, forbidden=self.forbidden
        )
        edited = chunk.original_ids.flatten().index_copy(0, chunk.corrupted, tokens[: len(positions)])
        return edited.view_as(chunk.original_ids)

    def _vocabulary_head(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the head, without the rows beyond the last token; both are views, which cost nothing."""
        rows, bias = len(self.forbidden), self.head.bias
        return self.head.weight[:rows], None if bias is None else bias[:rows]

    def _official(self, chunk: Chunk, hidden: Tensor) -> Tensor:
        positions = torch.arange(hidden.shape[0], device=hidden.device)
        tokens = sample_tokens(
            hidden, *self._vocabulary_head(), positions, seed=0, temperature=0.0, forbidden=self.forbidden
        )
        edited = tokens.view_as(chunk.original_ids).clone()
        edited[..., 0] = chunk.original_ids[..., 0]
        return edited * chunk.original_mask


def _filled(positions: Tensor) -> Tensor:
    """[K] int64, padded with zeros to a size that repeats; nobody reads the results for the zeros."""
    return F.pad(positions, (0, repeating_size(len(positions)) - len(positions)))


PROBE = 8  # tokens


@torch.no_grad()
def _check_finite(model: PreTrainedModel, known: Sequence[int], name: str) -> None:
    """Refuse a generator that would write the same token everywhere, or a token that does not exist.

    Raises:
        InputError: its logits for some tokens are not finite.
    """
    ids = torch.tensor([known[:: -(-len(known) // PROBE)]], device=model.device)
    logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[..., known]
    if not bool(logits.isfinite().all()):
        raise InputError(
            f"Generator {name} gives numbers that are not finite (NaN or infinity), computed in "
            f"{str(model.dtype).removeprefix('torch.')}; choose another model.generator, or set "
            "model.generator_precision=float32."
        )


def load_generator(recipe: Recipe, tokenizers: Tokenizers, device: torch.device) -> Generator | None:
    """The recipe's generator on `device`, in the recipe's precision; by default bfloat16 where the device supports it.

    None if `rtd_weight` is 0, or if edits were made before training.

    Raises:
        InputError: it cannot be loaded, its vocabulary differs from the discriminator's, it cannot read the sentences,
            or its logits are not finite.
    """
    objective = recipe.objective
    if objective.rtd_weight == 0 or objective.edits is not None or recipe.model.generator is None:
        return None
    choose_attention_kernels(recipe.model.cudnn_attention)
    name, trusted = recipe.model.generator, recipe.model.trust_remote_code
    discriminator = recipe.model.discriminator
    judge = f"encoder {recipe.model.encoder}" if discriminator is None else f"discriminator {discriminator}"
    tokenizer = tokenizers.discriminator
    check_same_vocabulary(tokenizer, load_tokenizer(name, trusted), (judge, name))
    model = load_masked_lm(name, trusted, device)
    check_fits(model, tokenizer, name, {"data.max_length": recipe.data.max_length})
    allow_packing(model)
    default = "bfloat16" if native_bfloat16(device) else "float32"
    if (recipe.model.generator_precision or default) == "bfloat16":
        cast_parameters(model, torch.bfloat16)
    seed = derive_seed(recipe.seed, "sampling")
    special, known = special_ids(tokenizer), known_ids(tokenizer)
    if device.type != "meta":
        _check_finite(model, known, name)
    return Generator(model, recipe.objective.fidelity, special, seed, known)
