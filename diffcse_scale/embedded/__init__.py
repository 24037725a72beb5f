"""A tiny backbone and a grammar that writes sentences, so that the package runs without a download."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def backbone_path() -> Path:
    """Folder of the embedded backbone, a BERT with masked-LM head that serves as encoder and generator."""
    return Path(str(resources.files(__name__))) / "backbone"
