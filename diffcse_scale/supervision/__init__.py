"""Everything that may end a run before its last step: requests to stop, silent ranks, and broken clusters."""
