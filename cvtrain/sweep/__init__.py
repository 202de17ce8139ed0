"""Hyperparameter search: W&B's sweep files, run by W&B's agents or by cvtrain's own engine on this machine."""
