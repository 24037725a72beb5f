"""`diffcse-scale doctor`: what a machine has for training, what follows from it, and what to do."""
