"""The files that hold a model's weights, planned before a weight is there, so that each can be written by itself.

What `save_pretrained` does besides writing numbers (names, order, sizes, index, configuration) needs shapes and dtypes
alone. Here it does that with tensors on the device "meta", and its plan of the files is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, modeling_utils

from diffcse_scale.model.lora import has_adapters

# bytes of weights in one file; a larger model has several, as transformers and the Hub cut them for years. It is what a
# rank holds in host memory beside its own part while a model that ZeRO-3 has partitioned is written
FILE_BYTES = 5 * 10**9

Plan = dict[str, dict[str, str]]
"""Of each file: the names of its tensors, each with the name that the network has for it."""


def in_several_files(encoder: PreTrainedModel) -> bool:
    """Whether the weights of a partitioned network may be written file by file; the same answer on every rank.

    That needs weights that reach the files as the network holds them. Adapters, which are merged or saved alone, and
    quantized weights do not. A weight that has two names is left to `save_pretrained`, which compares numbers.
    """
    state = encoder.state_dict(keep_vars=True)
    partitioned = any(hasattr(value, "ds_shape") for value in state.values())
    changed = has_adapters(encoder) or getattr(encoder, "hf_quantizer", None) is not None
    named_twice = len({id(value) for value in state.values()}) < len(state)
    size = sum(value.nbytes for value in _shapes(encoder).values())
    return partitioned and not changed and not named_twice and size > FILE_BYTES


def save_without_weights(encoder: PreTrainedModel, folder: Path) -> Plan | None:
    """Write all that `save_pretrained` writes, configuration and index among it, but no file of weights; plan those.

    Returns:
        The plan of the files; None where one of them has other tensors than the network: transformers converts the
        weights of some families back to their published form, for which it must have them all.
    """
    shapes, files = _shapes(encoder), dict[str, dict[str, Tensor]]()
    names = {id(value): name for name, value in shapes.items()}

    def kept(tensors: dict[str, Tensor], file: Any, metadata: Any = None) -> None:
        files[Path(file).name] = tensors

    write = modeling_utils.safe_save_file
    modeling_utils.safe_save_file = kept
    try:
        save_encoder(encoder, folder, dict(shapes))
    finally:
        modeling_utils.safe_save_file = write
    if any(id(tensor) not in names for tensors in files.values() for tensor in tensors.values()):
        return None
    return {file: {name: names[id(tensor)] for name, tensor in tensors.items()} for file, tensors in files.items()}


def save_encoder(encoder: PreTrainedModel, folder: Path, state: dict[str, Tensor] | None) -> None:
    """`save_pretrained`, in files of `FILE_BYTES`.

    Args:
        state: the weights, where `encoder` holds only a part of them (ZeRO-3).
    """
    with _parameters_counted(encoder):
        encoder.save_pretrained(folder, state_dict=state, max_shard_size=FILE_BYTES)


@contextmanager
def _parameters_counted(encoder: PreTrainedModel) -> Iterator[None]:
    """Have the index state the parameters of the whole network: of partitioned ones it would count no element."""
    numbers = [getattr(parameter, "ds_numel", -1) for parameter in encoder.parameters()]
    if min(numbers) < 0:
        yield
        return
    encoder.num_parameters = lambda: sum(numbers)
    try:
        yield
    finally:
        del encoder.num_parameters


def _shapes(encoder: PreTrainedModel) -> dict[str, Tensor]:
    """The network's state dict without numbers, whole also where ZeRO-3 has partitioned it."""
    return {
        name: torch.empty(getattr(value, "ds_shape", value.shape), dtype=value.dtype, device="meta")
        for name, value in encoder.state_dict(keep_vars=True).items()
    }
