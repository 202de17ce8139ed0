"""Features of a frozen backbone, computed once: batches of them stand in for batches of images."""
