"""Making a generator, and using one ahead of training."""
