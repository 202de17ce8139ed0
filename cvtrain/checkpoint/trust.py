"""Limits on the settings of a checkpoint: no code, no download, no remote source, no size that no run has.

Whoever evaluates a stranger's checkpoint trusts the command line, not the file. A setting of the file that reaches
beyond local images counts only if the command line names it again.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cvtrain.checkpoint.errors import CheckpointError
from cvtrain.config.errors import ConfigError
from cvtrain.config.reflection import breaks_rule, settings_of
from cvtrain.config.schema.data import (
    DataCache,
    DataConfig,
    DatasetConfig,
    FileDataConfig,
    HuggingFaceConfig,
    TorchvisionDataConfig,
)
from cvtrain.config.schema.model import CustomModelConfig, ModelConfig, TimmModelConfig
from cvtrain.config.schema.root import Config, EvaluateConfig
from cvtrain.config.serialize import to_plain

# Beyond these a setting has to be named: what they allow takes some GiB at most.
MAX_IMAGE_SIZE = 2048
MAX_BATCH_PIXELS = 2**28  # of one channel: 5,350 images of 224 x 224
MAX_WORKERS = 64
MAX_PREFETCH_BATCHES = 16
# Arguments of timm.create_model that name files or places to fetch from.
_TIMM_SOURCES = ("checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay", "hf_hub_id", "url", "file")


def check_ranges(config: Config, path: Path) -> None:
    """Refuse values of a saved config that no command line could have set.

    Raises:
        CheckpointError: it names the setting, the value and the rule.
    """
    for section in ("data", "model", "loss", "trainer"):
        part = getattr(config, section)
        for item in settings_of(type(part), section):
            value: Any = part
            for name in item.key.split(".")[1:]:
                value = getattr(value, name)
            plain = to_plain(value)
            if item.rule is not None and plain is not None and not item.is_open() and breaks_rule(plain, item.rule):
                raise CheckpointError(
                    path, f"has a false setting {item.key}={str(plain)[:80]}: must be {item.allowed()}"
                )


def trusted_data(data: DataConfig, named: EvaluateConfig) -> DataConfig:
    """Return the data settings of a checkpoint, less what only the command line may set.

    Nothing is downloaded or cached unless the command line says so.

    Raises:
        ConfigError: a setting that has to be named again on the command line.
    """
    wanted = named.data
    if isinstance(data, DatasetConfig) and wanted.target is None:
        raise not_by_itself("data.target", data.target, "the checkpoint was made with a class of your own")
    if isinstance(data, HuggingFaceConfig) and wanted.path is None:
        raise not_by_itself("data.path", data.path, "the checkpoint was trained on a set of the Hugging Face hub")
    again = {f"data.{name}" for name in ("root", "file", "path", "target") if getattr(wanted, name) is not None}
    _refuse_remote(data, "data", again)
    if not wanted.download and any(key.endswith("download") and value is True for key, value in _leaves(data, "data")):
        if not isinstance(data, (HuggingFaceConfig, TorchvisionDataConfig)):
            raise not_by_itself("data.download", "true", "the checkpoint's arguments for your class ask for a download")
        data = replace(data, download=False)
    if isinstance(data, FileDataConfig):
        data = replace(data, cache=DataCache.none, cache_dir=None)
    return replace(data, prefetch_batches=min(data.prefetch_batches, MAX_PREFETCH_BATCHES))


def trusted_model(model: ModelConfig, named: EvaluateConfig) -> ModelConfig:
    """Return the model settings of a checkpoint; a user's own class and remote networks only if named again.

    Raises:
        ConfigError: a setting that has to be named again on the command line.
    """
    target = named.model.target
    if isinstance(model, CustomModelConfig):
        if target is None:
            raise not_by_itself("model.target", model.target, "the checkpoint was made with a class of your own")
        _refuse_remote(model, "model", {"model.target"})
        return replace(model, target=target)
    if target is not None:
        raise ConfigError(
            key="model.target",
            value=target,
            rule=f"the checkpoint was trained with model={model.name}, which is no class of yours",
            remedy="leave model.target out",
        )
    _refuse_remote(model, "model", set())
    if isinstance(model, TimmModelConfig):
        sources = [key for key in model.kwargs if str(key) in _TIMM_SOURCES or str(key).startswith("pretrained")]
        if sources or ":" in model.arch:
            what = f"model.kwargs.{sources[0]}" if sources else f"model.arch={model.arch}"
            raise ConfigError(
                key="checkpoint",
                value=named.checkpoint,
                rule=f"{what} names files or a place to fetch from, which a checkpoint alone never does",
                remedy="to use its weights anyway, train with model.weights=PATH of that checkpoint",
            )
    return model


def check_sizes(data: DataConfig, named: EvaluateConfig) -> None:
    """Refuse sizes that take more memory or processes than an evaluation needs, unless the command line names them.

    Raises:
        ConfigError: it names the setting and how to allow it.
    """
    batch_size = data.eval_batch_size or data.batch_size
    if named.data.image_size is None and data.image_size > MAX_IMAGE_SIZE:
        _refuse_size("data.image_size", data.image_size, f"more than {MAX_IMAGE_SIZE}")
    if named.batch_size is None and batch_size * data.image_size**2 > MAX_BATCH_PIXELS:
        _refuse_size("batch_size", batch_size, f"with images of {data.image_size} pixels more than 2^28 pixels in all")
    workers = data.num_workers
    if named.data.num_workers is None and isinstance(workers, int) and workers > MAX_WORKERS:
        _refuse_size("data.num_workers", workers, f"more than {MAX_WORKERS}")


def not_by_itself(key: str, value: str, reason: str) -> ConfigError:
    """Return the error for a checkpoint that would import code or fetch something."""
    never = "code to run" if key.endswith("target") else "what to fetch"
    return ConfigError(
        key=key,
        rule=f"{reason}, and a checkpoint alone never names {never}",
        remedy=f"if you trust it, set {key}={value}",
    )


def _refuse_size(key: str, value: int, rule: str) -> None:
    raise ConfigError(
        key=key,
        value=value,
        rule=f"the checkpoint asks for {rule}, which takes much memory",
        remedy=f"if you trust it, set {key}={value}; or a smaller one",
    )


def _refuse_remote(section: Any, name: str, again: set[str]) -> None:
    """Refuse addresses in any text, but those that the command line replaces."""
    for key, value in _leaves(section, name):
        for text in (key, value):
            if isinstance(text, str) and "://" in text and key not in again:
                raise not_by_itself(key[:80], text[:80], f"the checkpoint names a remote source in {key[:80]}")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The values below a config section, lists and mappings included, by dotted key."""
    plain = to_plain(value)
    if isinstance(plain, dict):
        for name, item in plain.items():
            yield from _leaves(item, f"{key}.{name}")
    elif isinstance(plain, list):
        for index, item in enumerate(plain):
            yield from _leaves(item, f"{key}[{index}]")
    else:
        yield key, plain
