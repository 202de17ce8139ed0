"""Rules of `check`: those of its data and of its weights, and settings that only training looks at."""

from collections.abc import Callable, Iterator

from cvtrain.config.checks.data import (
    colours_have_three_parts,
    delimiter_is_one_character,
    extensions_have_dots,
    fold_is_one_of_several,
    fractions_leave_train,
    groups_are_an_expression,
    set_is_chosen_by_option,
    val_fraction_is_used,
    workers_are_a_number,
)
from cvtrain.config.checks.data_files import exclude_is_file, folder_has_classes, manifest_exists
from cvtrain.config.checks.model import architecture_is_known, weight_file_exists, weights_are_used
from cvtrain.config.checks.run import device_problem, output_root_is_folder
from cvtrain.config.errors import Problem
from cvtrain.config.schema.check import CheckConfig, has_weights


def nothing_is_augmented(config: CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if is_set("augment"):
        yield Problem("augment", rule="has no effect: check reads the images as they are", remedy="leave augment out")


def model_has_weights(config: CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if has_weights(config):
        yield from device_problem("device", config.device)
        return
    for key in ("model", "device"):
        if is_set(key):
            rule = "has no effect without model.weights: labels are checked by the features of a pretrained network"
            remedy = "name the weights, such as model=timm model.arch=NAME model.weights=FILE, or leave it out"
            yield Problem(key, rule=rule, remedy=remedy)


CHECK_CHECKS = (
    output_root_is_folder,
    nothing_is_augmented,
    model_has_weights,
    weights_are_used,
    weight_file_exists,
    architecture_is_known,
    workers_are_a_number,
    colours_have_three_parts,
    extensions_have_dots,
    groups_are_an_expression,
    delimiter_is_one_character,
    val_fraction_is_used,
    fractions_leave_train,
    fold_is_one_of_several,
    set_is_chosen_by_option,
    folder_has_classes,
    manifest_exists,
    exclude_is_file,
)
