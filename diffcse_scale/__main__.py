"""`python -m diffcse_scale` is `diffcse-scale`."""

from __future__ import annotations

from diffcse_scale.cli import main

main()
