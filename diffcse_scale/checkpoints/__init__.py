"""What a run is resumed from."""
