"""`diffcse-scale benchmark`: how long the training step takes here, and what with."""
