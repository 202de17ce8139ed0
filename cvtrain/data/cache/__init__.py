"""Decode once: images at the size that training and evaluation need, kept in memory or on disk."""
