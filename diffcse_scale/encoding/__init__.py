"""Embeddings of any amount of text, in files, and search in them.

`encode(EncodeOptions(...))` writes a folder, `load(folder)` reads it.
"""

from __future__ import annotations

from typing import Any

from diffcse_scale.encoding.encode_options import EncodeOptions

__all__ = ["EncodeOptions", "encode", "load"]


def __getattr__(name: str) -> Any:
    """Import functions that need torch only when they are used, so that `--help` does not import it."""
    if name == "load":
        from diffcse_scale.encoding.folder import load

        return load
    if name == "encode":
        from diffcse_scale.encoding.pipeline import encode

        return encode
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
