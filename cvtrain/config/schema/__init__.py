"""The settings: dataclasses with defaults, ranges and meanings."""
