"""The objective, with one file per term. Nothing here knows about DeepSpeed."""
