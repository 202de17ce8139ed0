"""`build_splits`: from the typed config of a source to its labelled images."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import (
    CsvConfig,
    CustomConfig,
    DataConfig,
    DatasetConfig,
    DigitsConfig,
    FileDataConfig,
    HuggingFaceConfig,
    TorchvisionDataConfig,
)
from cvtrain.data.images.bit_depth import FEW_BITS, used_bits
from cvtrain.data.images.reader import build_reader
from cvtrain.data.sources.custom import build_dataset
from cvtrain.data.sources.digits import build_digits
from cvtrain.data.sources.folder import build_custom
from cvtrain.data.sources.huggingface import build_huggingface
from cvtrain.data.sources.leakage import drop_leaks_of_val
from cvtrain.data.sources.manifest import build_csv
from cvtrain.data.sources.source import FileSource, Splits
from cvtrain.data.sources.torchvision import build_torchvision

SOURCES: dict[type, Callable[[Any], Splits]] = {
    DigitsConfig: build_digits,
    HuggingFaceConfig: build_huggingface,
    DatasetConfig: build_dataset,
}
FILE_SOURCES: dict[type, Callable[..., Splits]] = {
    CustomConfig: build_custom,
    CsvConfig: build_csv,
    TorchvisionDataConfig: build_torchvision,
}


def build_splits(config: DataConfig, *, min_classes: int = 2, allow_untrained: bool = False) -> Splits:
    """The train, val and (where there is one) test images that `config` names, with one class map for all.

    Only names and labels are read here; images are decoded when they are asked for, but the sets of arrays are loaded.

    Args:
        min_classes: how many there have to be: 2 to train; images of a single known class can be scored.
        allow_untrained: take images of folders and manifests whose class train has none of, to report them; and
            keep copies across splits.

    Raises:
        ConfigError: images or labels are missing, unclear or contradict each other; it names the setting to change.
    """
    if isinstance(config, FileDataConfig):
        options = {"allow_untrained": True} if allow_untrained and isinstance(config, (CustomConfig, CsvConfig)) else {}
        splits = FILE_SOURCES[type(config)](config, _build_config_reader(config), **options)
        splits = _warn_of_bit_depth(splits, config.bit_depth)
        splits = splits if allow_untrained else drop_leaks_of_val(config, splits)
    else:
        splits = SOURCES[type(config)](config)
    if len(splits.classes) < min_classes:
        found = f"{len(splits.classes)}: {', '.join(splits.classes) or 'none'}"
        key = "data.root" if isinstance(config, FileDataConfig) else "data"
        raise ConfigError(key=key, rule=f"a classifier needs at least two classes, found {found}")
    return splits


def _warn_of_bit_depth(splits: Splits, bit_depth: int) -> Splits:
    """Return `splits` with a warning if 16-bit training images use so few of their bits that they are nearly black."""
    source = splits.train
    if bit_depth < 16 or not isinstance(source, FileSource):
        return splits
    bits = used_bits(source)
    if bits is None or bits > FEW_BITS:
        return splits
    remedy = next(depth for depth in (8, 10, 12, FEW_BITS) if depth >= bits)
    warning = (
        f"the values of the 16-bit images use {bits} bits, so that they are nearly black: set data.bit_depth={remedy}"
    )
    return replace(splits, warnings=(*splits.warnings, warning))


def _build_config_reader(config: FileDataConfig) -> Callable[..., Any]:
    return build_reader(
        library=config.reader.value,
        channels=config.channels,
        alpha_color=tuple(config.alpha_color),
        max_image_pixels=config.max_image_pixels,
        bit_depth=config.bit_depth,
    )
