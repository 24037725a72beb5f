"""DiffCSE sentence embeddings from raw text, sharded with DeepSpeed ZeRO (arXiv 2204.10298)."""

__version__ = "0.1.0"
