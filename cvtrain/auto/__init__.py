"""`cvtrain auto`: the network and the training for a set of photos, found within a time."""
