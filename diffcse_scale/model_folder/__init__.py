"""Writes, reads and checks the folder of a finished model."""
