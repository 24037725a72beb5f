"""Where DeepSpeed is met: its configuration, its launch, its optimizer, and what differs by ZeRO stage."""
