"""Model folders as earlier versions of sentence-transformers wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def to_old_layout(folder: Path) -> None:
    """Move the network and its tokenizer of a folder one down, into `0_Transformer`."""
    (folder / "0_Transformer").mkdir()
    of_network = [file for file in folder.glob("*.*") if not file.name.startswith(("modules", "config_"))]
    for file in of_network:
        shutil.move(file, folder / "0_Transformer" / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
