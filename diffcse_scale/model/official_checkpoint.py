"""Read checkpoints of the official DiffCSE and SimCSE programs.

Their `state_dict` holds the encoder as `bert.*` or `roberta.*` (or without a prefix, as published on the Hub) and the
projection as `mlp.*` (in published SimCSE checkpoints as `pooler.dense.*`). DiffCSE checkpoints also hold
`discriminator.*` and `electra_head.*`. The masked-LM head and the generator in them are not needed and are left out.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.damage import damage_told
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.model.weights import check_finite

log = logging.getLogger(__name__)

# official prefix -> our prefix; the first match counts
PREFIXES = (
    ("generator.", None),
    ("lm_head.", None),
    ("cls.", None),
    ("discriminator.", "discriminator.backbone."),
    ("electra_head.", "rtd_head."),
    ("mlp.", "projection."),
    ("pooler.dense.", "projection.dense."),
    ("bert.", "encoder.backbone."),
    ("roberta.", "encoder.backbone."),
    ("", "encoder.backbone."),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename official parameters to the names in `DiffCSENetworks`."""
    renamed = {}
    for name, value in state.items():
        # position_ids and token_type_ids were saved buffers in older transformers, but are not today
        if name.endswith(("position_ids", "token_type_ids")):
            continue
        theirs, ours = next(pair for pair in PREFIXES if name.startswith(pair[0]))
        # `bert.pooler` is the unused pooler of the trunk, not the projection
        if ours is not None and ".pooler." not in name:
            renamed[ours + name.removeprefix(theirs)] = value
    return renamed


def load_official_checkpoint(model: DiffCSENetworks, folder: Path) -> list[str]:
    """Load an official checkpoint folder into `model`.

    Returns:
        Names of parameters of `model` that the checkpoint lacks (for example, a published encoder has no RTD head).

    Raises:
        InputError: the folder has no readable weights, only one of the two has some encoder parameter, a width
            differs, or values are not finite.
    """
    state = rename(_read(folder))
    known = model.state_dict().keys()
    body = tuple(f"encoder.backbone.{name}." for name, _ in model.encoder.backbone.named_children())
    theirs, ours = ({name for name in names if name.startswith(body)} for names in (state, known))
    if not theirs & ours:
        raise InputError(f"Checkpoint {folder} holds no parameter of this encoder; is it of another architecture?")
    if differing := sorted(theirs ^ ours):
        whose = "has no weights for" if differing[0] in ours else "has weights that this encoder has no place for:"
        raise InputError(
            f"Checkpoint {folder} {whose} {differing[0].removeprefix('encoder.backbone.')} ({len(differing)} differ in "
            "all); choose the model.encoder that it was trained from."
        )
    try:
        result = model.load_state_dict({name: value for name, value in state.items() if name in known}, strict=False)
    except RuntimeError as error:
        raise InputError(f"Checkpoint {folder} does not fit: {str(error).splitlines()[-1].strip()}") from None
    check_finite(model, str(folder))
    if missing := sorted({name.split(".")[0] for name in result.missing_keys}):
        log.warning("Checkpoint %s lacks weights of %s, which are initialized anew.", folder, ", ".join(missing))
    return list(result.missing_keys)


def _read(folder: Path) -> dict[str, Tensor]:
    with damage_told(f"Checkpoint {folder}", folder):
        if (folder / "model.safetensors").is_file():
            return load_file(folder / "model.safetensors")
        if (folder / "pytorch_model.bin").is_file():
            state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
                raise InputError(f"Checkpoint {folder}: pytorch_model.bin holds something other than named tensors.")
            return state
    raise InputError(f"Checkpoint {folder} has neither model.safetensors nor pytorch_model.bin.")
