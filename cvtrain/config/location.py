"""Where the config groups are: packaged as cvtrain/conf in a wheel, beside the package in a checkout."""

from pathlib import Path


def conf_dir() -> Path:
    """The folder of the config groups, absolute."""
    package = Path(__file__).resolve().parent.parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"
