"""What lets the package run without a download: a tiny backbone, and a grammar that writes sentences."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def backbone_path() -> Path:
    """Folder of the embedded backbone: a BERT with masked-LM head, encoder and generator alike."""
    return Path(str(resources.files(__name__))) / "backbone"
