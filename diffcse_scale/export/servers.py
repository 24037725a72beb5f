"""Notes on how embedding servers read an exported folder, because each has its own rules.

docs/serving.md has the whole table with the source files that were read. The notes here are about silent errors. If a
server refuses to start, it says so itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from diffcse_scale.export.onnx import FOLDER as ONNX_FOLDER
from diffcse_scale.foundation.model_files import network_folder
from diffcse_scale.model_folder.layout import module_names

PAGE = "docs/serving.md"


def serving_notes(folder: Path) -> Iterator[str]:
    """A sentence for each server that would silently give other vectors than `folder` itself."""
    names = module_names(folder)
    if "WeightedLayerPooling" in names:
        yield (
            "text-embeddings-inference takes the first token's vector of this model, and vLLM and Ollama the mean over "
            f"the last layer alone: none of them averages two layers ({PAGE})."
        )
    if "Dense" in names:
        yield (
            "Ollama leaves the Dense layers (projection, whitening) away and gives the vectors before them; so does "
            f"llama.cpp ({PAGE})."
        )
    if "Dense" in names and (folder / ONNX_FOLDER / "model.onnx").is_file():
        yield (
            f"text-embeddings-inference prefers {ONNX_FOLDER}/ on a CPU and then leaves out the Dense layers; serve a "
            f"folder without it ({PAGE})."
        )
    if _cased_wordpiece(folder):
        yield f"Ollama lower-cases text, which this model's tokenizer does not ({PAGE})."


def _cased_wordpiece(folder: Path) -> bool:
    """Whether the tokenizer is a WordPiece one that keeps capitals."""
    file = network_folder(folder) / "tokenizer.json"
    if not file.is_file():
        return False
    tokenizer = Tokenizer.from_file(str(file))
    lowers = tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("A") == "a"
    return isinstance(tokenizer.model, WordPiece) and not lowers
