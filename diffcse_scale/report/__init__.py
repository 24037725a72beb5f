"""One self-contained page about one run or several: what was run, how it went, what came out."""

from __future__ import annotations

from diffcse_scale.report.command import report

__all__ = ["report"]
