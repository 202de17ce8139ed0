"""Two runs compared: figures by step, weights by bit, causes from what is on record."""

import json

import pytest
import torch

from cvtrain.report.reproduction import compare_figures, compare_weights, likely_causes

ROWS = [
    {"step": 1, "epoch": 1, "train/loss": 1.0, "perf/images_per_second": 10.0},
    {"step": 2, "epoch": 1, "train/loss": 0.5},
    {"step": 2, "epoch": 1, "val/loss": 0.7, "val/accuracy": 0.25},
]


def changed(row, **values):
    rows = [dict(each) for each in ROWS]
    rows[row].update(values)
    return rows


def test_speeds_do_not_count():
    found = compare_figures(ROWS, changed(0, **{"perf/images_per_second": 99.0}))
    assert (found.num_values, found.num_different, found.last_step, found.first) == (4, 0, 2, None)


def test_first_difference_is_the_earliest():
    now = changed(1, **{"train/loss": 0.5000001})
    now[2]["val/accuracy"] = 0.5
    found = compare_figures(ROWS, now)
    assert found.num_different == 2
    assert str(found.first) == ("step 2 (epoch 1): train/loss was 0.5, now 0.5000001, a difference of 1e-07")


def test_figures_after_the_last_step_do_not_count_and_missing_ones_do():
    more = [*ROWS, {"step": 3, "epoch": 2, "train/loss": 0.1}]
    assert compare_figures(ROWS, more).num_different == 0
    found = compare_figures(more, ROWS)
    assert (found.num_different, found.first.step, found.first.now) == (1, 3, None)
    assert str(found.first) == "step 3 (epoch 2): train/loss was 0.1, now nothing"


def test_a_loss_that_is_not_finite_is_equal_to_itself():
    assert compare_figures(changed(0, **{"train/loss": None}), changed(0, **{"train/loss": None})).num_different == 0


def test_weights_are_compared_by_bit():
    before = {"a": torch.tensor([1.0, float("nan"), 0.0]), "b": torch.ones(2, 2), "n": torch.tensor(3)}
    same = compare_weights(before, {name: tensor.clone() for name, tensor in before.items()})
    assert (same.num_tensors, same.num_different) == (3, 0)
    now = {**before, "a": torch.tensor([1.0, float("nan"), -0.0]), "b": torch.tensor([[1.0, 1.0], [1.0, 1.25]])}
    found = compare_weights(before, now)
    assert (found.num_different, found.first) == (2, "a")
    assert compare_weights({"b": before["b"]}, {"b": now["b"]}).largest == 0.25
    assert compare_weights(before, {"a": before["a"], "b": torch.ones(2)}).num_different == 2


@pytest.fixture
def folders(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        environment = {
            "versions": {"torch": "2.9.0", "numpy": "2.0"},
            "devices": {"threads": 4},
            "machine": {"cpu": "Xeon"},
            "git": {"revision": "abc", "dirty": False},
        }
        (tmp_path / name / "environment.json").write_text(json.dumps(environment))
        (tmp_path / name / "summary.json").write_text(json.dumps({"device": "cpu"}))
    return tmp_path


def digest(count):
    return {split: {"num_images": count, "digest": f"{split}{count}"} for split in ("train", "val")}


def test_causes_are_what_differs(folders):
    states = {"data_digest": digest(4)}, {"data_digest": digest(5)}
    paths = folders / "one", folders / "two"
    assert list(likely_causes(*paths, states[0], states[0], {})) == []
    environment = json.loads((paths[1] / "environment.json").read_text())
    environment["versions"]["torch"] = "2.10.0"
    environment["devices"]["threads"] = 1
    environment["git"]["revision"] = "def"
    (paths[1] / "environment.json").write_text(json.dumps(environment))
    (paths[1] / "summary.json").write_text(json.dumps({"device": "cuda:0"}))
    (paths[0] / "history" / "step_00000010").mkdir(parents=True)
    assert list(likely_causes(*paths, *states, {"trainer": {"deterministic": False, "max_minutes": 2.0}})) == [
        "the images have changed: train: 4 images before, 5 now; val: 4 images before, 5 now",
        "other versions: torch 2.9.0 -> 2.10.0",
        "other devices and threads: threads 4 -> 1",
        "another git revision: abc -> def",
        "another device: cpu -> cuda:0",
        "trainer.deterministic=false: kernels of a GPU may round differently from run to run",
        "trainer.max_minutes=2 ends a run by the clock",
        "the run was resumed (step_00000010), perhaps with other settings",
    ]
