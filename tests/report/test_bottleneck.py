"""The sentence about where the time went: shares of made-up times, and the setting to try."""

import dataclasses

import pytest

from cvtrain.report.bottleneck import (
    Bottleneck,
    RunFacts,
    fewer_saves,
    find_bottleneck,
    less_evaluation,
    more_workers,
    summarize_times,
)

ALL = RunFacts(
    cache_setting="data.cache=auto",
    workers_setting="data.num_workers=8",
    eval_setting="trainer.eval_every_epochs=5",
    save_setting="a larger checkpoint.every_steps",
    transfer_setting="data.device_cache=always",
    compute_setting="trainer.compile=true",
)
DECODING = {"read": 20.0, "decode": 140.0, "augment": 30.0, "collate": 10.0}
AUGMENTING = {"read": 20.0, "decode": 40.0, "augment": 130.0, "collate": 10.0}


@pytest.mark.parametrize(
    ("loop", "data", "sentence", "remedy"),
    [
        ({"wait": 71.0, "forward_backward": 29.0}, DECODING,
         "waiting for data 71% of the time, mostly decoding: try data.cache=auto", "data.cache=auto"),
        ({"wait": 71.0, "forward_backward": 29.0}, AUGMENTING,
         "waiting for data 71% of the time, mostly augmenting: try data.num_workers=8", "data.num_workers=8"),
        ({"wait": 71.0, "forward_backward": 29.0}, {}, "waiting for data 71% of the time", None),
        ({"wait": 1.0, "forward_backward": 49.0, "evaluation": 50.0}, {},
         "evaluating 50% of the time: try trainer.eval_every_epochs=5", "trainer.eval_every_epochs=5"),
        ({"forward_backward": 80.0, "evaluation": 20.0}, {},
         "computing 80% of the time, waiting for data 0%: try trainer.compile=true", "trainer.compile=true"),
        ({"forward_backward": 70.0, "checkpoint": 30.0}, {},
         "copying checkpoints 30% of the time: try a larger checkpoint.every_steps", "a larger checkpoint.every_steps"),
        ({"forward_backward": 70.0, "logging": 30.0}, {},
         "logging 30% of the time: try a larger trainer.log_every_steps", "a larger trainer.log_every_steps"),
        ({"wait": 1.0, "transfer": 30.0, "forward_backward": 69.0}, {},
         "copying batches to the device 30% of the time: try data.device_cache=always", "data.device_cache=always"),
        ({"wait": 30.0, "evaluation": 45.0, "forward_backward": 25.0}, DECODING,  # the larger of two
         "evaluating 45% of the time: try trainer.eval_every_epochs=5", "trainer.eval_every_epochs=5"),
        ({"wait": 14.0, "forward_backward": 46.0, "other": 40.0}, DECODING,
         "computing 46% of the time, waiting for data 14%", None),
    ],
)  # fmt: skip
def test_largest_share_is_named(loop, data, sentence, remedy):
    assert find_bottleneck(loop, data, ALL, num_steps=20) == Bottleneck(sentence, remedy)


@pytest.mark.parametrize(
    ("loop", "sentence"),
    [
        ({"wait": 71.0, "forward_backward": 29.0}, "waiting for data 71% of the time, mostly decoding"),
        ({"evaluation": 60.0, "forward_backward": 40.0}, "evaluating 60% of the time"),
        ({"transfer": 30.0, "forward_backward": 70.0}, "copying batches to the device 30% of the time"),
        ({"wait": 2.0, "prepare": 3.0, "forward_backward": 90.0, "optimizer": 5.0},
         "computing 98% of the time, waiting for data 2%: the device is the limit"),
    ],
)  # fmt: skip
def test_nothing_is_proposed_that_cannot_help(loop, sentence):
    assert find_bottleneck(loop, DECODING, RunFacts(), num_steps=500) == Bottleneck(sentence)


def test_no_advice_after_few_steps():
    loop = {"wait": 71.0, "forward_backward": 29.0}
    assert find_bottleneck(loop, DECODING, ALL, num_steps=19) is None
    assert find_bottleneck({}, {}, ALL, num_steps=500) is None


def test_features_computed_once_need_no_setting():
    facts = dataclasses.replace(ALL, uses_features=True)
    found = find_bottleneck({"wait": 71.0, "forward_backward": 29.0}, DECODING, facts, num_steps=500)
    assert found == Bottleneck("waiting for features 71% of the time, each computed once: more epochs cost little")


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({}, "data.num_workers=8"),
        ({"num_cores": 6}, "data.num_workers=6"),
        ({"num_batches": 3}, "data.num_workers=3"),
        ({"num_workers": 8}, None),
        ({"is_in_memory": True}, None),
        ({"on_cpu": True}, "data.num_workers=8"),
        ({"on_cpu": True, "num_cores": 4}, "data.num_workers=2"),
        ({"on_cpu": True, "num_cores": 2}, None),
    ],
)
def test_more_workers_where_cores_are_free(changes, setting):
    facts = {"num_workers": 0, "is_in_memory": False, "num_batches": 100, "num_cores": 16, "on_cpu": False}
    assert more_workers(**{**facts, **changes}) == setting


@pytest.mark.parametrize(
    ("overrides", "saves", "evaluations"),
    [
        ((), "trainer.eval_every_epochs=5", "trainer.eval_every_epochs=5"),
        (("trainer.epochs=3",), "trainer.eval_every_epochs=3", "trainer.eval_every_epochs=3"),
        (("trainer.epochs=1",), None, None),
        (("trainer.eval_every_steps=5",), "a larger trainer.eval_every_steps", "a larger trainer.eval_every_steps"),
        (("checkpoint.every_minutes=0.5",), "a larger checkpoint.every_minutes", "trainer.eval_every_epochs=5"),
        (("checkpoint.every_steps=5", "checkpoint.every_minutes=0.5"), "a larger checkpoint.every_steps",
         "trainer.eval_every_epochs=5"),
    ],
)  # fmt: skip
def test_settings_that_save_and_evaluate_less(compose_config, overrides, saves, evaluations):
    config = compose_config("trainer.epochs=20", *overrides)
    assert (fewer_saves(config), less_evaluation(config)) == (saves, evaluations)


def test_shares_of_summary_add_up_to_one():
    loop = {"wait": 71.0, "forward_backward": 25.0, "optimizer": 4.0}
    found = summarize_times(loop, DECODING, Bottleneck("waiting", "data.cache=auto"), num_workers=2)
    assert sum(stage["share"] for stage in found["loop"].values()) == pytest.approx(1)
    assert found["data"]["decode"] == {"seconds": 140.0, "share": 0.7}
    assert (found["loop_seconds"], found["data_workers"]) == (100.0, 2)
    assert (found["bottleneck"], found["remedy"]) == ("waiting", "data.cache=auto")
    few = summarize_times({}, {}, None, num_workers=0)
    assert few["bottleneck"] is None and few["remedy"] is None and few["loop"] == {}
