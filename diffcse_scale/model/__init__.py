"""The networks of DiffCSE. Nothing here knows about DeepSpeed."""
