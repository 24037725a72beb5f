"""The folder of a finished model: written, read, checked."""
