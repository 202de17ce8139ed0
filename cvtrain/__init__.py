"""cvtrain: config-driven training of image classifiers. `import cvtrain` loads nothing heavy."""

__version__ = "0.1.0"
