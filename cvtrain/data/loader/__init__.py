"""From indices to batches."""
