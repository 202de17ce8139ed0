"""Advice on speed: sentences and estimates for times that were made up, by the arithmetic of docs/outputs.md."""

import dataclasses

import pytest

from cvtrain.report.bottleneck import Facts, find_bottleneck
from cvtrain.report.times import describe_times
from cvtrain.training.timer import StageTimes

GPU = Facts(num_workers=2, num_cores=2, on_cpu=False, can_cache=True, cache_remedy="data.cache=ram")
# An epoch of 100 s, 71 of them waiting; two workers are busy all of it, 160 of their 200 s with files.
STARVED = StageTimes(
    loop={"wait": 71.0, "forward_backward": 25.0, "optimizer": 4.0},
    data={"read": 20.0, "decode": 140.0, "augment": 30.0, "collate": 10.0},
    data_cpu={"read": 10.0, "decode": 140.0, "augment": 30.0, "collate": 10.0},
    loop_cpu={"wait": 1.0, "forward_backward": 10.0, "optimizer": 2.0},
    num_epochs=1,
)


def test_waiting_for_decoding():
    finding = find_bottleneck(STARVED, GPU)
    # Without files the workers need (200 - 160) / 2 = 20 s, less than the 29 s of computing: 100 / 29.
    assert finding.speedup == 3.45
    assert finding.remedy == "data.cache=ram"
    assert finding.sentence == (
        "waiting for data 71% of the time, mostly decoding: data.cache=ram would make an epoch about 3.4x faster"
    )


def test_without_workers_the_time_with_files_is_what_is_saved():
    times = dataclasses.replace(STARVED, data={"decode": 50.0, "augment": 21.0})
    finding = find_bottleneck(times, dataclasses.replace(GPU, num_workers=0, num_cores=1))
    assert finding.speedup == 2.0


def test_workers_where_there_are_none_and_the_network_computes_on_the_cores_too():
    facts = dataclasses.replace(GPU, num_workers=0, num_cores=4, on_cpu=True, can_cache=False)
    data = {"augment": 60.0, "collate": 8.0}
    times = dataclasses.replace(
        STARVED, data=data, data_cpu=data, loop_cpu={"wait": 71.0, "forward_backward": 4 * 29.0}
    )
    finding = find_bottleneck(times, facts)
    assert finding.remedy == "data.num_workers=4"
    assert finding.speedup == pytest.approx(100 / (29 + 68 / 4), abs=0.01)


def test_where_the_network_computes_on_the_same_busy_cores_work_that_falls_away_is_given_back():
    # Two workers and two threads ask for two cores all the time: each has one for half of it.
    times = StageTimes(
        loop={"wait": 0.0, "forward_backward": 100.0},
        data={"decode": 160.0, "augment": 40.0},
        data_cpu={"decode": 80.0, "augment": 20.0},
        loop_cpu={"forward_backward": 100.0},
        num_epochs=1,
    )
    finding = find_bottleneck(times, dataclasses.replace(GPU, on_cpu=True))
    # All cores together: 200 core seconds with decoding, 120 without.
    assert finding.speedup == pytest.approx(200 / 120, rel=0.1)
    assert finding.sentence.startswith("decoding takes cores from computing: data.cache=ram would make an epoch about")


def test_a_gain_below_5_percent_is_not_worth_a_word():
    times = dataclasses.replace(COMPUTING, data={"decode": 2.0}, data_cpu={"decode": 2.0})
    for wait, promised in ((2.0, None), (4.0, None), (8.0, 1.09)):
        waiting = dataclasses.replace(times, loop={"wait": wait, "forward_backward": 100 - wait})
        starved = dataclasses.replace(waiting, data={"decode": wait})
        finding = find_bottleneck(starved, dataclasses.replace(GPU, num_workers=0, num_cores=1))
        assert finding.speedup == promised
        assert ("would make" in finding.sentence) == (promised is not None)


def test_more_workers_where_cores_are_free():
    facts = dataclasses.replace(GPU, can_cache=False, num_cores=8)
    finding = find_bottleneck(STARVED, facts)
    assert finding.remedy == "data.num_workers=8"
    assert finding.estimates == {"data.num_workers=8": 3.45}
    assert finding.speedup == 3.45  # 200 / 8 = 25 s hide behind 29 s of computing


def test_evaluation_that_takes_half():
    times = StageTimes(loop={"wait": 1.0, "forward_backward": 49.0, "evaluation": 50.0}, num_epochs=3)
    finding = find_bottleneck(times, GPU)
    assert finding.remedy == "trainer.eval_every_epochs=5"
    assert finding.speedup == pytest.approx(100 / 60, abs=0.01)
    assert finding.sentence.startswith("evaluating 50% of the time: ")


COMPUTING = StageTimes(loop={"wait": 2.0, "forward_backward": 90.0, "optimizer": 5.0, "other": 3.0}, data={"read": 1.0})


@pytest.mark.parametrize(
    ("facts", "remedy", "words"),
    [
        ({"faster_precision": True}, "trainer.precision=bf16", "computing 95% of the time, waiting for data 2%"),
        ({"can_compile": True}, "trainer.compile=true", "may help, beyond it a faster device"),
        ({}, None, "the device is the limit"),
    ],
)
def test_computing_has_no_estimate(facts, remedy, words):
    finding = find_bottleneck(COMPUTING, dataclasses.replace(GPU, **facts))
    assert finding.remedy == remedy
    assert finding.speedup is None
    assert words in finding.sentence


def test_copies_that_do_not_run_beside_the_computation():
    times = StageTimes(loop={"wait": 1.0, "transfer": 30.0, "forward_backward": 69.0}, num_epochs=2)
    assert find_bottleneck(times, GPU).sentence.startswith("copying batches to the device 30% of the time: data.device")


@pytest.mark.parametrize(("stage", "setting"), [("logging", "log_every_steps"), ("checkpoint", "every_minutes")])
def test_writing(stage, setting):
    finding = find_bottleneck(StageTimes(loop={"forward_backward": 70.0, stage: 30.0}), GPU)
    assert setting in finding.sentence
    assert "30%" in finding.sentence


def test_workers_are_not_proposed_for_images_that_lie_in_memory():
    times = StageTimes(loop={"wait": 30.0, "forward_backward": 70.0}, data={"collate": 30.0}, num_epochs=2)
    facts = Facts(num_workers=0, num_cores=2, on_cpu=True)
    assert find_bottleneck(times, facts).remedy == "data.num_workers=2"
    assert find_bottleneck(times, dataclasses.replace(facts, is_ready_made=True)).remedy is None


def test_the_setting_that_saves_is_named():
    times = StageTimes(loop={"forward_backward": 70.0, "checkpoint": 30.0})
    finding = find_bottleneck(times, dataclasses.replace(GPU, save_remedy="trainer.eval_every_epochs"))
    assert finding.remedy == "trainer.eval_every_epochs"


def test_augmentation_that_no_cache_can_help():
    times = dataclasses.replace(STARVED, data={"augment": 190.0, "read": 10.0})
    finding = find_bottleneck(times, dataclasses.replace(GPU, can_cache=False))
    assert finding.sentence == (
        "waiting for data 71% of the time, mostly augmenting: a lighter augment or more cores would help"
    )


def test_nothing_was_measured():
    assert find_bottleneck(StageTimes(), GPU).sentence == "nothing was measured"


def test_shares_add_up():
    described = describe_times(STARVED, find_bottleneck(STARVED, GPU), num_workers=2)
    assert sum(stage["share"] for stage in described["loop"].values()) == pytest.approx(1)
    assert described["data"]["decode"] == {"seconds": 140.0, "share": 0.7}
    assert described["loop_seconds"] == 100.0


def test_features_that_are_computed_once_ask_for_no_setting():
    finding = find_bottleneck(STARVED, dataclasses.replace(GPU, keeps_features=True))
    assert finding.sentence == "waiting for features 71% of the time, each computed once: more epochs cost little"
    assert finding.remedy is None and finding.speedup is None


def test_the_stage_that_is_named_is_the_one_that_takes_cores():
    # A worker that finds its core taken as it wakes up loses time before it comes to decoding.
    times = dataclasses.replace(
        STARVED, data={"decode": 60.0, "collate": 140.0}, data_cpu={"decode": 60.0, "collate": 1.0}
    )
    assert "mostly decoding" in find_bottleneck(times, GPU).sentence


def test_small_gains_are_written_down_though_not_worth_a_sentence():
    times = dataclasses.replace(STARVED, loop={"wait": 2.0, "forward_backward": 98.0}, data={"decode": 2.0})
    facts = dataclasses.replace(GPU, num_workers=0, num_cores=0)
    finding = find_bottleneck(times, facts)
    assert finding.speedup is None
    assert describe_times(times, finding, num_workers=0)["estimates"] == ["data.cache=ram: 1.02"]
