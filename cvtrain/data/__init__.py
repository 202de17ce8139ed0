"""Where images and labels come from, and how they become batches: source -> reader -> transform -> batch."""
