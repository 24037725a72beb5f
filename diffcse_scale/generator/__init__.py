"""Trains a generator, and edits a corpus with one before training."""
