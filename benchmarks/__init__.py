"""Speed and memory, with peers beside us in one run. Run from the repository root."""
