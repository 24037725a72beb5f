"""Plans a run before any weight is loaded: memory per device, communication, and which sizes fit.

The networks are built from their configuration on tensors without data, and one training step is rehearsed on them
(`rehearsal`). The model's own code runs, so every family, pooling and activation checkpointing is covered. The engine
cannot be rehearsed; its memory is simulated on top of the rehearsal (`memory`).
"""
