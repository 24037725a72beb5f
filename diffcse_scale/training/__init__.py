"""The training loop and what attaches to it."""

from diffcse_scale.training.hook import Hook

__all__ = ["Hook"]
