"""DiffCSE sentence embeddings from raw text, sharded with DeepSpeed ZeRO (arXiv 2204.10298)."""

from __future__ import annotations

from diffcse_scale.api import DiffCSE

__all__ = ["DiffCSE"]
__version__ = "0.1.0"
