"""What may end a run before its last step: requests, silent ranks, worlds that cannot work."""
