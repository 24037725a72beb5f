"""The networks of DiffCSE. Nothing here knows of DeepSpeed."""
