"""Rules of `check`: those of its data, and settings that only training looks at."""

from collections.abc import Callable, Iterator

from cvtrain.config.checks.data import (
    colours_have_three_parts,
    delimiter_is_one_character,
    extensions_have_dots,
    set_is_chosen_by_option,
    val_fraction_is_used,
    workers_are_a_number,
)
from cvtrain.config.checks.data_files import exclude_is_file, folder_has_classes, manifest_exists
from cvtrain.config.checks.run import output_root_is_folder
from cvtrain.config.errors import Problem
from cvtrain.config.schema.check import CheckConfig


def training_settings_are_left_out(config: CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    for key in ("augment", "model"):
        if is_set(key):
            yield Problem(key, rule="has no effect: check reads the images as they are", remedy=f"leave {key} out")


CHECK_CHECKS = (
    output_root_is_folder,
    training_settings_are_left_out,
    workers_are_a_number,
    colours_have_three_parts,
    extensions_have_dots,
    delimiter_is_one_character,
    val_fraction_is_used,
    set_is_chosen_by_option,
    folder_has_classes,
    manifest_exists,
    exclude_is_file,
)
