"""The projection z = p(h) as modules of sentence-transformers, for users who want z from `encode`.

Normally only training uses it (`model/projection.py`). The trainer stores its weights beside the run's model, not in
it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.run_files import PROJECTION
from diffcse_scale.model.damage import damage_told
from diffcse_scale.model.projection import make_projection
from diffcse_scale.model.weights import check_finite
from diffcse_scale.model_folder.save import append_module

EPS = torch.nn.BatchNorm1d(1).eps


class Dense(NamedTuple):
    """activation(weight @ x + bias): weight [out, in], bias [out]."""

    weight: Tensor
    bias: Tensor
    activation: str


def append_projection(folder: Path, run: Path, kind: str) -> None:
    """Append the run's projection to the modules of an exported folder.

    Args:
        kind: `model.projection` of the run's recipe.

    Raises:
        InputError: the run has no projection, or did not store its weights.
    """
    for layer in dense_layers(open_projection(run, kind).state_dict()):
        append_dense(folder, layer)


def append_dense(folder: Path, layer: Dense) -> None:
    """Append a dense layer to the modules of an exported folder."""
    width_out, width_in = layer.weight.shape
    config: dict[str, Any] = {
        "in_features": width_in,
        "out_features": width_out,
        "bias": True,
        "activation_function": layer.activation,
    }
    append_module(folder, "Dense", config, {"linear.weight": layer.weight, "linear.bias": layer.bias})


def open_projection(run: Path, kind: str) -> nn.Module:
    """The projection of a run's model, in eval mode.

    Raises:
        InputError: the run was trained without one, or its file is missing, damaged or of another kind.
    """
    file = run / PROJECTION
    if kind == "none":
        raise InputError(f"The run in {run} was trained without a projection (model.projection none), so z equals h.")
    if not file.is_file():
        raise InputError(
            f"{run} has no {PROJECTION}: its model was exported by a version that kept none; export without "
            "--with-projection, or train again."
        )
    with damage_told(f"The projection of the run in {file}", advice="export without it"):
        state = load_file(file)
        width = min((min(tensor.shape) for tensor in state.values() if tensor.ndim == 2), default=1)
        network = make_projection(kind, width)
        network.load_state_dict(state)
    check_finite(network, str(file))
    return network.eval()


def dense_layers(state: dict[str, Tensor]) -> list[Dense]:
    """A projection in eval mode as dense float32 layers, with every BatchNorm folded into the layer before it.

    With g = weight / sqrt(variance + eps), BatchNorm of W x is (g W) x + (bias - g mean). Computed in float64.
    """
    tensors = {name: tensor.double() for name, tensor in state.items()}
    if "dense.weight" in tensors:
        return [
            Dense(tensors["dense.weight"].float(), tensors["dense.bias"].float(), "torch.nn.modules.activation.Tanh")
        ]
    return [
        _folded(tensors, "net.0.", "net.1.", "torch.nn.modules.activation.ReLU"),
        _folded(tensors, "net.3.", "net.4.", "torch.nn.modules.linear.Identity"),
    ]


def _folded(tensors: dict[str, Tensor], linear: str, norm: str, activation: str) -> Dense:
    gain = torch.rsqrt(tensors[f"{norm}running_var"] + EPS)
    if f"{norm}weight" in tensors:
        gain = gain * tensors[f"{norm}weight"]
    bias = -gain * tensors[f"{norm}running_mean"]
    if f"{norm}bias" in tensors:
        bias = bias + tensors[f"{norm}bias"]
    return Dense((gain[:, None] * tensors[f"{linear}weight"]).float(), bias.float(), activation)
