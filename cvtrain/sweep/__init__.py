"""Hyperparameter search: W&B's sweep files, run by W&B's agents or by an engine of our own on this machine."""
