"""A trained network as files for other programs, and the proof that they answer as cvtrain does."""
