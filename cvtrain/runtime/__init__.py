"""What a run stands on: devices, precision, random numbers, signals, files, the console."""
