"""All use of DeepSpeed: its configuration, its launch, its optimizer, and differences between ZeRO stages."""
