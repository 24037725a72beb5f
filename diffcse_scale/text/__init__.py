"""Sentences in, token batches out: corpus, tokens, order, corruption, batches."""
