"""What `pretrain-generator` has written."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file


def saved_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")
