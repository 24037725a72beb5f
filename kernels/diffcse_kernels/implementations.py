"""Which implementations this installation has, and which one `impl="auto"` means."""

from __future__ import annotations

IMPLEMENTATIONS = ("reference",)


def resolve(impl: str) -> str:
    """The name of the implementation to run; ValueError if this installation does not have it."""
    if impl == "auto":
        return "reference"
    if impl not in IMPLEMENTATIONS:
        available = ", ".join(repr(name) for name in ("auto", *IMPLEMENTATIONS))
        raise ValueError(f"impl={impl!r} is not available in this installation; available: {available}")
    return impl
