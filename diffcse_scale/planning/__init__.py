"""What a run will need, before any weight is loaded: memory of every device, communication, what fits.

The networks are built from their configuration on tensors that have shapes but no numbers, and one training step is
rehearsed on them, so that any family, pooling and activation checkpointing is covered by its own code
(`rehearsal`). The engine's part, which cannot be rehearsed, is replayed on what the rehearsal saw (`memory`).
"""
