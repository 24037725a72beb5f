"""From sentences to token batches: corpus, tokens, order, corruption, batches."""
