"""Look for what makes the figures of a data set wrong, before anything is trained."""
