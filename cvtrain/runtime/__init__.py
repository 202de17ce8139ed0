"""Devices, precision, random numbers, signals, files, the console."""
