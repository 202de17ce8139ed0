import os

# Tests import albumentations at their top; its question to the network at import is not what they are about.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
