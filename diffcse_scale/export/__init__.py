"""Export: a model folder that other libraries load, its card, other formats, and upload to the Hub."""

from __future__ import annotations

from diffcse_scale.model_folder.save import export_sentence_transformer

__all__ = ["export_sentence_transformer"]
