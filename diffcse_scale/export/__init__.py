"""The way out: a model folder that other libraries load, its card, other formats, the Hub."""

from __future__ import annotations

from diffcse_scale.export.sentence_transformer import POOLINGS, export_sentence_transformer

__all__ = ["POOLINGS", "export_sentence_transformer"]
