"""From images and labels to batches: source -> reader -> transform -> batch."""
