"""The loop, and everything a run needs around it."""
