"""`diffcse-scale benchmark`: how long a training step takes here, and how its time is spent."""
