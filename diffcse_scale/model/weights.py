"""Check that a network's weights match its files: none missing, none without a place, all finite."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffcse_scale.distributed import gather_objects, rank
from diffcse_scale.foundation.errors import InputError

# heads for other tasks, which models are published with besides the network that computes token vectors
HEADS = ("cls", "lm_head", "head", "score", "classifier", "qa_outputs", "predictions", "mlp", "vocab_projector")


@contextmanager
def weights_checked() -> Iterator[None]:
    """A context that refuses to load a transformers network if its files do not match it.

    transformers initializes missing weights at random and warns. In most commands sentence-transformers calls it, and
    some of its modules load several networks. The check is therefore in `from_pretrained` itself. `check_finite` checks
    separately that weights are finite.

    Raises:
        InputError: weights are missing, have another shape, or have no place in the network.
    """
    method = vars(PreTrainedModel)["from_pretrained"]
    plain = method.__func__

    def from_pretrained(cls: Any, name: str, *arguments: Any, **options: Any) -> Any:
        asked = options.get("output_loading_info", False)
        # we report differing sizes ourselves, in one sentence; no option of a model folder may ask for unpickling
        options.update(output_loading_info=True, ignore_mismatched_sizes=True, weights_only=True)
        added = (options.get("adapter_kwargs") or {}).get("_adapter_model_path", name)
        model, report = plain(cls, name, *arguments, **options)
        if adapters := getattr(model, "peft_config", None):
            # this report is about the adapters; the report about their base is lost, so load the base without its data
            _check(model, report, str(added), tolerated=())
            if not Path(name, "config.json").is_file():
                (name,) = {adapter.base_model_name_or_path for adapter in adapters.values()}
            options.update(config=model.config, device_map={"": "meta"}, adapter_kwargs={"subfolder": "no adapters"})
            _, report = plain(cls, name, *arguments, **options)
        _check(model, report, str(name), tolerated=_heads(model, report["unexpected_keys"]))
        if any("pooler" in key.split(".") for key in report["missing_keys"]):
            without_pooler(model)
        return (model, report) if asked else model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = method


def without_pooler(backbone: PreTrainedModel) -> PreTrainedModel:
    """The same backbone without the pooler, which some families have."""
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return backbone


def check_finite(network: nn.Module, name: str) -> None:
    """Refuse weights that are not finite.

    Raises:
        InputError: some weights are not finite; the error names the first.
    """
    state = network.state_dict(keep_vars=True)
    found = [key for key, tensor in state.items() if not _finite(_own_part(tensor))]
    if any(hasattr(tensor, "ds_tensor") for tensor in state.values()):
        # perhaps only one rank has found it, and the others would wait for this rank
        found = sorted(set().union(*gather_objects(found)))
    if found:
        raise InputError(
            f"Model {name} has weights that are not finite numbers: {found[0]} ({len(found)} in all); give an "
            "undamaged copy of it."
        )


def _check(model: PreTrainedModel, report: dict[str, Any], name: str, tolerated: Collection[str]) -> None:
    """Refuse the mismatches in a loading report, except for the pooler, which is never used here."""
    needs = type(model).__name__
    if missing := _without_poolers(report["missing_keys"]):
        raise InputError(
            f"Model {name} has no trained weights for {missing[0]} ({len(missing)} in all), which {needs} needs; "
            "choose a model that has them."
        )
    if mismatched := _without_poolers({key: sizes for key, *sizes in report["mismatched_keys"]}):
        stored, expected = next(sizes for key, *sizes in report["mismatched_keys"] if key == mismatched[0])
        raise InputError(
            f"Model {name} has weights of another shape than its configuration: {mismatched[0]} is {list(stored)}, not "
            f"{list(expected)} ({len(mismatched)} in all); give it the config.json that belongs to these weights."
        )
    if unexpected := _without_poolers(set(report["unexpected_keys"]) - set(tolerated)):
        raise InputError(
            f"Model {name} has weights that {needs} has no place for: {unexpected[0]} ({len(unexpected)} in "
            "all); give it the config.json that belongs to these weights."
        )


def _without_poolers(keys: Collection[str]) -> list[str]:
    return sorted(key for key in keys if "pooler" not in key.split("."))


def _heads(model: PreTrainedModel, keys: Collection[str]) -> list[str]:
    """The `keys` that belong to a head, which other tasks put on top of this network."""
    body = model.base_model
    inside = {model.base_model_prefix, *(name for name, _ in body.named_children())}
    of_this_class = body is model and type(model).__name__ in (model.config.architectures or [])
    heads = [key for key in keys if key.split(".")[0] not in inside]
    return [key for key in heads if not of_this_class or key.split(".")[0] in HEADS]


def _own_part(tensor: Tensor) -> Tensor:
    """The values that this rank holds: all, or under ZeRO-3 its part, without the filling of the last part."""
    part = getattr(tensor, "ds_tensor", None)
    if part is None:
        return tensor
    if part.numel() != part.ds_numel:  # the part is on disk
        return part[:0]
    return part[: max(0, tensor.ds_numel - rank() * part.numel())]  # type: ignore[attr-defined]


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite, in one read and without a copy; the extremes are NaN if any value is."""
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return True
    values = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(torch.stack(values.aminmax())).all())


def cast_parameters(network: nn.Module, dtype: torch.dtype) -> None:
    """Hold the floating-point parameters in `dtype`.

    Buffers keep their dtype. Rotary frequencies rounded to bfloat16 would be off by whole turns at late positions, and
    running statistics would lose what a step adds.
    """
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
