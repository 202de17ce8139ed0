"""A classifier over HTTP: the application, its limits, and the batches that its requests share."""
