"""The words seeds=N and folds=K of a command line."""

import pytest

from cvtrain.config.errors import ConfigError
from cvtrain.config.repeats import Repeats, expand_repeats, take_repeats


def test_seeds_follow_the_seed_of_the_command():
    repeats, others = take_repeats(["model=mlp", "seeds=3", "seed=7"])
    assert (repeats, others) == (Repeats("seeds", 3), ["model=mlp", "seed=7"])
    assert expand_repeats(repeats, others, lambda: 7) == ["model=mlp", "seed=7,8,9"]


def test_folds_are_values_of_data_fold():
    repeats, others = take_repeats(["folds=2", "seed=7"])
    assert expand_repeats(repeats, others, lambda: 7) == ["seed=7", "data.fold='0/2','1/2'"]


def test_other_commands_are_left_alone():
    assert take_repeats(["seed=1", "seeds=null"]) == (None, ["seed=1", "seeds=null"])


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["seeds=1"], "must be a whole number of runs, 2 to 100"),
        (["folds=five"], "must be a whole number of runs"),
        (["folds=101"], "must be a whole number of runs"),
        (["seeds=3", "folds=3"], "cannot be had together with seeds=3"),
        (["seeds=3", "seed=1,2"], "cannot be had together with seed=1,2"),
        (["folds=3", "data.fold='0/3'"], "cannot be had together with data.fold"),
    ],
)
def test_words_that_cannot_be(tokens, words):
    with pytest.raises(ConfigError, match=words):
        take_repeats(tokens)
