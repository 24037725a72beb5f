"""The training loop and its hooks."""

from diffcse_scale.training.hook import Hook

__all__ = ["Hook"]
