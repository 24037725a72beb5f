"""Check that a network can read its tokenizer's output: its ids, its first token, and the length of a sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.pooling import POOLINGS
from diffcse_scale.text.tokenizers import known_ids, surroundings

log = logging.getLogger(__name__)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer without its files; for some families transformers then creates one that knows no words.

    Raises:
        InputError: it knows only special tokens.
    """
    if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens):
        files = ", ".join(sorted(set(tokenizer.vocab_files_names.values())))
        raise InputError(f"Tokenizer of {name} has no vocabulary; add the model's own tokenizer files ({files}).")


def check_first_token(tokenizer: PreTrainedTokenizerBase, pooling: str, name: str) -> None:
    """Refuse a tokenizer that puts nothing before a sentence if the sentence embedding is the first token's vector.

    A tokenizer without a post-processor is like this. The embedding would be that of the sentence's first word.

    Raises:
        InputError: the first token is a part of the sentence.
    """
    if POOLINGS[pooling].token == "first" and surroundings(tokenizer)[0] == 0:
        raise InputError(
            f"Tokenizer of {name} puts no token before a sentence, so with model.pooling {pooling} its embedding would "
            "be the vector of its first word; add a post-processor that puts one there ([CLS]), or set "
            "model.pooling=mean."
        )


def check_same_vocabulary(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, names: tuple[str, str]
) -> None:
    """Generator and discriminator exchange token ids, so their vocabularies must be equal; their names may differ.

    Raises:
        InputError: the vocabularies differ; the error names both models and the first id with different tokens.
    """
    vocabularies = [{index: token for token, index in tokenizer.get_vocab().items()} for tokenizer in (first, second)]
    if vocabularies[0] == vocabularies[1]:
        return
    ids = sorted(vocabularies[0].keys() | vocabularies[1].keys())
    differing = next(index for index in ids if vocabularies[0].get(index) != vocabularies[1].get(index))
    tokens = [repr(vocabulary.get(differing, "nothing")) for vocabulary in vocabularies]
    raise InputError(
        f"Vocabularies differ between {names[0]} and generator {names[1]}: id {differing} is {tokens[0]} in "
        f"one and {tokens[1]} in the other; choose a generator with the same tokenizer, or train one with "
        "`diffcse-scale pretrain-generator --tokenizer`."
    )


def check_fits(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, lengths: Mapping[str, int]
) -> None:
    """Refuse a network that has no embedding for an id of its tokenizer, or for a position in a sentence.

    Rows beyond the tokenizer's ids are allowed, because vocabularies are rounded up for speed.

    Args:
        network: with weights or without.
        lengths: lengths of sentences in tokens, by the name of the field or option that sets them.

    Raises:
        InputError: something is too small, or positions are counted from a padding id that is not there; the error
            names it.
    """
    if any(map(_lacks_padding_id, network.modules())):
        raise InputError(
            f"Model {name} counts positions from its padding id, and its config.json has none; set pad_token_id there "
            f"(its tokenizer pads with {tokenizer.pad_token_id})."
        )
    rows = getattr(network.get_input_embeddings(), "num_embeddings", None)
    last = known_ids(tokenizer)[-1]
    if rows is not None and last >= rows:
        raise InputError(
            f"Model {name} has embeddings for {rows} ids, but its tokenizer writes ids up to {last}; give it the "
            "tokenizer files that belong to it."
        )
    limit, trained = positions(network), trained_length(network)
    for field, length in lengths.items():
        if length <= tokenizer.num_special_tokens_to_add():
            raise InputError(f"{field} = {length} leaves no room besides the special tokens of {name}; raise it.")
        if limit is not None and length > limit:
            raise InputError(f"{field} = {length} is more than the {limit} positions of {name}; lower it.")
        if trained is not None and length > trained:
            log.warning(
                "%s = %d is more than the %d tokens that %s was trained for; how well it reads more is unknown.",
                field, length, trained, name,
            )  # fmt: skip


def positions(network: nn.Module) -> int | None:
    """How many tokens a network has positions for; None if positions are computed, by distance or by rotation.

    The position tables are inspected, not only the configuration. RoBERTa-like models number positions from pad + 1,
    and the padding index of their position table shows it.
    """
    tables = list(_position_tables(network))
    return min([*tables, trained_length(network) or tables[0]]) if tables else None


def _position_tables(network: nn.Module) -> Iterator[int]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding) and _is_of_positions(name):
            yield module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    for name, buffer in network.named_buffers():  # sinusoidal tables
        if name.rpartition(".")[2] == "embed_positions":
            yield len(buffer)


def _lacks_padding_id(module: nn.Module) -> bool:
    """Whether `module` is a RoBERTa-like embedding, which numbers tokens from the padding id on, and has no such id."""
    counts = hasattr(module, "position_embeddings") and hasattr(module, "create_position_ids_from_inputs_embeds")
    return counts and getattr(module, "padding_idx", 0) is None


def _is_of_positions(name: str) -> bool:
    own = name.rpartition(".")[2]
    return own == "wpe" or ("position" in own and "relative" not in own)


def trained_length(network: nn.Module) -> int | None:
    """The length in the configuration; a network with computed positions can read longer sentences."""
    length = getattr(getattr(network, "config", None), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None
