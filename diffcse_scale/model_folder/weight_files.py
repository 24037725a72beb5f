"""Plans the weight files of a model before the weights are gathered, so that each file can be written separately.

Apart from writing numbers, `save_pretrained` (names, order, sizes, index, configuration) needs only shapes and dtypes.
Here it runs on tensors on the device "meta", and its plan of the files is kept.
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

# bytes of weights per file; larger models have several files, as transformers and the Hub have done for years. While a
# model that ZeRO-3 partitions is written, a rank holds so many bytes in host memory besides its own part
FILE_BYTES = 5 * 10**9

Plan = dict[str, dict[str, str]]
"""For each file the names of its tensors, each with the network's own name for it."""


def in_several_files(encoder: PreTrainedModel) -> bool:
    """Whether the weights of a partitioned network may be written file by file. Every rank gets the same answer.

    The files must contain the weights as the network holds them. This is not so for adapters, which are merged or saved
    alone, and for quantized weights. Weights with two names are left to `save_pretrained`, which compares numbers.
    """
    state = encoder.state_dict(keep_vars=True)
    partitioned = any(hasattr(value, "ds_shape") for value in state.values())
    changed = has_adapters(encoder) or getattr(encoder, "hf_quantizer", None) is not None
    named_twice = len({id(value) for value in state.values()}) < len(state)
    size = sum(value.nbytes for value in _shapes(encoder).values())
    return partitioned and not changed and not named_twice and size > FILE_BYTES


def save_without_weights(encoder: PreTrainedModel, folder: Path) -> Plan | None:
    """Write everything that `save_pretrained` writes, including configuration and index, except the weight files.

    Returns:
        The plan of the weight files. None if a file has other tensors than the network: transformers converts the
        weights of some families back to their published form and needs all of them for that.
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
    """Call `save_pretrained` with files of `FILE_BYTES`.

    Args:
        state: the weights, if `encoder` holds only a part of them (ZeRO-3).
    """
    with _parameters_counted(encoder):
        encoder.save_pretrained(folder, state_dict=state, max_shard_size=FILE_BYTES)


@contextmanager
def _parameters_counted(encoder: PreTrainedModel) -> Iterator[None]:
    """Make the index state the whole network's number of parameters. It would count 0 for partitioned ones."""
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
    """The network's state dict on the meta device, with full shapes even if ZeRO-3 partitions it."""
    return {
        name: torch.empty(getattr(value, "ds_shape", value.shape), dtype=value.dtype, device="meta")
        for name, value in encoder.state_dict(keep_vars=True).items()
    }
