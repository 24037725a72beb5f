"""One self-contained page about one or several runs: their settings, their course and their results."""

from __future__ import annotations

from diffcse_scale.report.command import report

__all__ = ["report"]
