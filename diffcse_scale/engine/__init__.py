"""All use of DeepSpeed: its configuration, its launch, its optimizer, and what differs by ZeRO stage."""
