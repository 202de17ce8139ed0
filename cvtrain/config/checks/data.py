"""Rules of group `data` that need no look at the disk."""

import re
from collections.abc import Callable, Iterator

from cvtrain.config.checks.run import workers_problem
from cvtrain.config.errors import Problem
from cvtrain.config.schema.check import CheckConfig
from cvtrain.config.schema.data import (
    CsvConfig,
    CustomConfig,
    DataCache,
    DatasetConfig,
    DecodedDataConfig,
    DeviceCache,
    FileDataConfig,
    HuggingFaceConfig,
    Normalize,
    OwnFilesConfig,
    QuickCheck,
    Resize,
    TorchvisionDataConfig,
    TorchvisionSet,
    parse_fold,
)
from cvtrain.config.schema.model import PretrainedConfig
from cvtrain.config.schema.root import Config

# Their images are held in memory as they are.
_ARRAY_SETS = (
    TorchvisionSet.mnist,
    TorchvisionSet.fashion_mnist,
    TorchvisionSet.cifar10,
    TorchvisionSet.cifar100,
    TorchvisionSet.svhn,
    TorchvisionSet.stl10,
)


def _has_weights(config: Config) -> bool:
    return isinstance(config.model, PretrainedConfig) and config.model.pretrained


def _statistics_from_weights(config: Config) -> bool:
    wanted = config.data.normalize
    return wanted is Normalize.weights or (wanted is Normalize.auto and _has_weights(config))


def statistics_fit_channels(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    """One value per channel; a single value stands for all channels."""
    data = config.data
    for key, values in (("data.mean", data.mean), ("data.std", data.std)):
        is_used = not _statistics_from_weights(config) or is_set(key)
        if is_used and len(values) not in (1, data.channels):
            count = f"{data.channels} values, one per channel, or one" if data.channels > 1 else "one value"
            yield Problem(key, values, f"must have {count} for data.channels={data.channels}")


def statistics_are_used(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    data = config.data
    if data.normalize is Normalize.weights and not _has_weights(config):
        yield Problem(
            "data.normalize",
            data.normalize,
            "needs pretrained weights, which carry the statistics",
            "set data.normalize=data, or train a network with model.pretrained=true",
        )
    for key, values in (("data.mean", data.mean), ("data.std", data.std)):
        if _statistics_from_weights(config) and is_set(key):
            yield Problem(
                key,
                values,
                f"has no effect with data.normalize={data.normalize.value}: the weights' own statistics count",
                "set data.normalize=data to use yours",
            )


def crop_fraction_is_used(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    data = config.data
    if data.resize is not Resize.resize_crop and is_set("data.crop_fraction"):
        yield Problem(
            "data.crop_fraction",
            data.crop_fraction,
            f"has no effect with data.resize={data.resize.value}",
            "set data.resize=resize_crop, or leave it out",
        )


def batch_splits_evenly(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    size, steps = config.data.batch_size, config.trainer.grad_accum_steps
    if size % steps:
        yield Problem(
            "data.batch_size",
            size,
            f"cannot be split evenly into trainer.grad_accum_steps={steps} micro-batches",
            f"take a multiple of {steps}, such as {max(1, round(size / steps)) * steps}",
        )


def workers_are_a_number(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    yield from workers_problem(config.data.num_workers)


def colours_have_three_parts(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    data = config.data
    if isinstance(data, DecodedDataConfig) and len(data.alpha_color) != 3:
        yield Problem("data.alpha_color", data.alpha_color, "must have three values: red, green and blue, 0 to 255")


def extensions_have_dots(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if not isinstance(config.data, CustomConfig):
        return
    wrong = [extension for extension in config.data.extensions if not extension.startswith(".") or extension == "."]
    if wrong or not config.data.extensions:
        yield Problem(
            "data.extensions", config.data.extensions, "must name file endings with their dot, such as [.jpg,.png]"
        )


def delimiter_is_one_character(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if isinstance(config.data, CsvConfig) and config.data.delimiter != "auto" and len(config.data.delimiter) != 1:
        yield Problem("data.delimiter", config.data.delimiter, "must be one character, or auto")


def val_fraction_is_used(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    """A source that names its own val split is not split; what lies in a folder is looked at in `data_files`."""
    data = config.data
    own_split = ""
    if isinstance(data, HuggingFaceConfig) and data.val_split is not None:
        own_split = f"data.val_split={data.val_split}"
    elif isinstance(data, DatasetConfig) and data.val_kwargs:
        own_split = "data.val_kwargs"
    has_seed = data.test_fraction is not None
    for key, value in (("data.val_fraction", data.val_fraction), ("data.split_seed", data.split_seed)):
        if own_split and is_set(key) and not (has_seed and key == "data.split_seed"):
            yield Problem(key, value, f"has no effect with {own_split}", "leave one of the two out")
    if own_split and data.fold is not None:
        rule = f"cannot be had with {own_split}: only images in files can be pooled with those of train"
        yield Problem("data.fold", data.fold, rule, "leave one of the two out")


def fractions_leave_train(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    data = config.data
    if data.fold is None and data.test_fraction is not None and data.val_fraction + data.test_fraction >= 1:
        rule = f"leaves nothing for train beside data.val_fraction={data.val_fraction:g}"
        yield Problem("data.test_fraction", data.test_fraction, rule, "the two must be below 1 together")
    own_test = ""
    if isinstance(data, HuggingFaceConfig) and data.test_split is not None:
        own_test = f"data.test_split={data.test_split}"
    elif isinstance(data, DatasetConfig) and data.test_kwargs:
        own_test = "data.test_kwargs"
    if own_test and data.test_fraction is not None:
        yield Problem("data.test_fraction", data.test_fraction, f"has no effect with {own_test}", "leave one out")


def fold_is_one_of_several(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    data = config.data
    if data.fold is None:
        return
    try:
        parse_fold(data.fold)
    except ValueError as error:
        yield Problem("data.fold", data.fold, str(error))
    if is_set("data.val_fraction"):
        rule = f"has no effect with data.fold={data.fold}"
        yield Problem("data.val_fraction", data.val_fraction, rule, "leave one of the two out")


def groups_are_an_expression(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    data = config.data
    if isinstance(data, OwnFilesConfig) and data.group_regex is not None:
        try:
            re.compile(data.group_regex)
        except re.error as error:
            yield Problem("data.group_regex", data.group_regex, f"is no regular expression: {error}")
    if isinstance(data, CsvConfig) and data.group_regex is not None and data.group_column is not None:
        rule = f"says the same as data.group_column={data.group_column} in another way"
        yield Problem("data.group_regex", data.group_regex, rule, "leave one of the two out")


def set_is_chosen_by_option(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    """`data=cifar10 data.dataset=svhn` would train on one set under the name and with the statistics of another."""
    data = config.data
    if not isinstance(data, TorchvisionDataConfig) or not is_set("data.dataset"):
        return
    if data.name != data.dataset.value and data.name in [known.value for known in TorchvisionSet]:
        rule = f"is another set than data={data.name}, whose name and statistics the run would have"
        yield Problem("data.dataset", data.dataset.value, rule, f"did you mean data={data.dataset.value}?")


def cache_is_used(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    data = config.data
    if not isinstance(data, FileDataConfig):
        return
    keys = {"data.cache": data.cache, "data.cache_dir": data.cache_dir, "data.cache_limit_gib": data.cache_limit_gib}
    reason, affected = "", tuple(keys)
    if isinstance(data, TorchvisionDataConfig) and data.dataset in _ARRAY_SETS:
        reason = f"has no effect with data={data.name}: its images lie in memory anyway"
    elif data.cache is DataCache.none:
        reason, affected = "has no effect with data.cache=none", ("data.cache_dir", "data.cache_limit_gib")
    elif data.cache is DataCache.ram:
        reason, affected = "has no effect with data.cache=ram", ("data.cache_dir",)
    for key in affected if reason else ():
        if is_set(key) and keys[key] is not None:
            yield Problem(key, keys[key], reason, "leave it out")


def leakage_is_looked_for(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    data = config.data
    if not isinstance(data, FileDataConfig) or not is_set("data.on_leakage"):
        return
    if data.check is QuickCheck.off:
        rule = "has no effect with data.check=off: no copies are looked for"
        yield Problem("data.on_leakage", data.on_leakage, rule, "leave one of the two out")
    elif isinstance(data, TorchvisionDataConfig) and data.dataset in _ARRAY_SETS:
        rule = f"has no effect with data={data.name}: only files are compared"
        yield Problem("data.on_leakage", data.on_leakage, rule, "leave it out")


def device_cache_is_used(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.trainer.overfit_one_batch and config.data.device_cache is DeviceCache.always:
        yield Problem(
            "data.device_cache",
            config.data.device_cache,
            "has no effect with trainer.overfit_one_batch=true, which takes one batch only",
            "leave it out",
        )


DATA_CHECKS = (
    statistics_fit_channels,
    statistics_are_used,
    crop_fraction_is_used,
    batch_splits_evenly,
    workers_are_a_number,
    colours_have_three_parts,
    extensions_have_dots,
    delimiter_is_one_character,
    val_fraction_is_used,
    fractions_leave_train,
    fold_is_one_of_several,
    groups_are_an_expression,
    set_is_chosen_by_option,
    leakage_is_looked_for,
    cache_is_used,
    device_cache_is_used,
)
