"""`diffcse-scale doctor`: what a machine has for training, the consequences, and what to do."""
