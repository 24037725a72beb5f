"""The objective, a term a file. Nothing here knows of DeepSpeed."""
