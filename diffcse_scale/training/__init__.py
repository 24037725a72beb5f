"""The training loop and its hooks."""

from diffcse_scale.foundation.errors import RunEnded
from diffcse_scale.training.hook import Hook

__all__ = ["Hook", "RunEnded"]
