"""The store: the state at the call, one write at a time, the newest kept, failures told once."""

import logging
import os
import threading

import pytest
import torch
from made_checkpoints import make_state, names_in

from cvtrain.checkpoint import (
    CheckpointError,
    CheckpointStore,
    SnapshotError,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    store,
)
from cvtrain.runtime import files as atomic


def step_of(path):
    return load_checkpoint(path)["position"]["step"]


class Gate:
    """Stands in for the writing of a file: waits until it is told to go on, and notes what it writes."""

    def __init__(self, monkeypatch):
        self.plain_write = store.write_snapshot
        self.started = threading.Semaphore(0)
        self.may_go_on = threading.Semaphore(0)
        self.written = []
        self.at_once = 0
        self.most_at_once = 0
        monkeypatch.setattr(store, "write_snapshot", self)

    def __call__(self, path, snapshot, **options):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.started.release()
        assert self.may_go_on.acquire(timeout=20)
        self.written.append((path.name, snapshot["position"]["step"]))
        self.plain_write(path, snapshot, **options)
        self.at_once -= 1


def test_what_is_written_is_the_state_at_the_call(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    checkpoints = CheckpointStore(tmp_path)
    state = make_state(5, size=1000)
    state["model"]["view"] = state["model"]["weight"][:, ::2]
    checkpoints.save(state)
    assert gate.started.acquire(timeout=20)
    for tensor in (*state["model"].values(), state["optimizer"]["state"][0]["momentum"]):
        tensor.fill_(-1)
    state["position"]["step"] = 6
    state["config"]["betas"].append(0)
    gate.may_go_on.release()
    assert checkpoints.wait(20)
    loaded = load_checkpoint(tmp_path / "last.pt")
    expected = make_state(5, size=1000)
    assert torch.equal(loaded["model"]["weight"], expected["model"]["weight"])
    assert torch.equal(loaded["model"]["view"], expected["model"]["weight"][:, ::2])
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum"], expected["model"]["weight"])
    assert loaded["position"] == expected["position"]
    assert loaded["config"] == expected["config"]


def test_saving_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    checkpoints = CheckpointStore(tmp_path)
    checkpoints.save(make_state(1))
    assert gate.started.acquire(timeout=20)  # the call above is back, and nothing is written
    assert checkpoints.wait(0.01) is False
    gate.may_go_on.release()
    assert checkpoints.wait(20) is True
    assert checkpoints.wait() is True


def test_the_newest_request_takes_the_place_of_a_waiting_one(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    checkpoints = CheckpointStore(tmp_path)
    checkpoints.save(make_state(1))
    assert gate.started.acquire(timeout=20)
    checkpoints.save(make_state(2), names=("last.pt", "best.pt"))  # its last.pt is replaced, its best.pt is not
    checkpoints.save(make_state(3))
    checkpoints.save(make_state(4))
    gate.may_go_on.release(9)
    assert checkpoints.wait(20)
    assert gate.written == [("last.pt", 1), ("best.pt", 2), ("last.pt", 4)]
    assert gate.most_at_once == 1
    assert (step_of(tmp_path / "best.pt"), step_of(tmp_path / "last.pt")) == (2, 4)


def test_a_newer_best_takes_the_place_of_a_waiting_best(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    checkpoints = CheckpointStore(tmp_path)
    checkpoints.save(make_state(1))
    assert gate.started.acquire(timeout=20)
    for step in (2, 3):
        checkpoints.save(make_state(step), names=("best.pt", "last.pt"))
    gate.may_go_on.release(9)
    assert checkpoints.wait(20)
    assert gate.written == [("last.pt", 1), ("best.pt", 3)]
    assert (tmp_path / "best.pt").samefile(tmp_path / "last.pt")


def test_a_state_that_is_both_is_written_once(tmp_path, monkeypatch):
    written = []
    plain = store.write_snapshot
    monkeypatch.setattr(
        store, "write_snapshot", lambda path, *args, **kwargs: (written.append(path.name), plain(path, *args, **kwargs))
    )
    checkpoints = CheckpointStore(tmp_path, keep_last=1)
    for step in (1, 2):
        checkpoints.save(make_state(step), names=("last.pt", "best.pt"))
        checkpoints.wait()
    assert written == ["best.pt", "best.pt"]
    assert names_in(tmp_path) == ["best.pt", "last.pt", "step_00000001.pt"]
    assert [step_of(tmp_path / name) for name in names_in(tmp_path)] == [2, 2, 1]


@pytest.mark.parametrize("keep_last", [0, 1, 3])
def test_the_newest_older_states_are_kept(tmp_path, keep_last):
    checkpoints = CheckpointStore(tmp_path, keep_last=keep_last)
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(make_state(step))
        checkpoints.wait()
    numbers = [40, 30, 20, 10][:keep_last]
    assert names_in(tmp_path) == sorted(["last.pt", *(f"step_{number:08d}.pt" for number in numbers)])
    assert step_of(tmp_path / "last.pt") == 50
    assert [step_of(tmp_path / f"step_{number:08d}.pt") for number in numbers] == numbers


def test_saving_one_step_twice_keeps_no_second_copy(tmp_path):
    checkpoints = CheckpointStore(tmp_path, keep_last=2)
    for step in (10, 20, 20):
        checkpoints.save(make_state(step))
        checkpoints.wait()
    assert names_in(tmp_path) == ["last.pt", "step_00000010.pt"]


def test_a_new_process_goes_on_with_the_numbers(tmp_path):
    for step in (10, 20, 30, 123_456_789):
        checkpoints = CheckpointStore(tmp_path, keep_last=2)
        checkpoints.save(make_state(step))
        assert checkpoints.close()
    assert names_in(tmp_path) == ["last.pt", "step_00000020.pt", "step_00000030.pt"]
    checkpoints.save(make_state(200_000_000))
    checkpoints.wait()
    assert names_in(tmp_path) == ["last.pt", "step_00000030.pt", "step_123456789.pt"]
    assert [step for step, _ in store.numbered_checkpoints(tmp_path)] == [123_456_789, 30]


def test_going_back_removes_the_future_that_was_given_up(tmp_path):
    checkpoints = CheckpointStore(tmp_path, keep_last=3)
    for step in (10, 20, 30):
        checkpoints.save(make_state(step))
        checkpoints.wait()
    checkpoints = CheckpointStore(tmp_path, keep_last=3)  # resumed from step 10
    checkpoints.save(make_state(15))
    checkpoints.wait()
    assert names_in(tmp_path) == ["last.pt", "step_00000010.pt"]
    assert step_of(tmp_path / "last.pt") == 15


def test_a_damaged_last_is_not_kept_as_a_number(tmp_path):
    save_checkpoint(tmp_path / "step_00000010.pt", make_state(10))
    (tmp_path / "last.pt").write_bytes(b"damaged")
    checkpoints = CheckpointStore(tmp_path, keep_last=2)
    checkpoints.save(make_state(20))
    checkpoints.wait()
    assert names_in(tmp_path) == ["last.pt", "step_00000010.pt"]


def test_what_no_checkpoint_can_hold_is_an_error_at_the_call(tmp_path):
    checkpoints = CheckpointStore(tmp_path)
    with pytest.raises(SnapshotError, match=r"state\['model'\]\['extra'\]"):
        checkpoints.save(make_state() | {"model": {"extra": {1, 2}}})
    assert checkpoints.close()


def test_saving_does_not_touch_random_numbers(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    checkpoints = CheckpointStore(tmp_path)
    checkpoints.save(make_state())
    checkpoints.wait()
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------- failures


class BrokenDisk:
    """fsync fails with `error` as long as it is set."""

    def __init__(self, monkeypatch):
        self.error = None
        plain = atomic.os.fsync

        def fsync(descriptor):
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
            plain(descriptor)

        monkeypatch.setattr(atomic.os, "fsync", fsync)


def messages(caplog, level):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ENOSPC", "free some space"),
        ("EDQUOT", "free some of your quota"),
        ("EROFS", "read-only"),
        ("EACCES", "the right to write"),
        ("EIO", "tries again"),
    ],
)
def test_a_failure_is_one_warning_and_the_next_success_ends_it(tmp_path, monkeypatch, caplog, name, remedy):
    caplog.set_level(logging.INFO)
    disk = BrokenDisk(monkeypatch)
    checkpoints = CheckpointStore(tmp_path)
    checkpoints.save(make_state(1))
    checkpoints.wait()
    disk.error = getattr(__import__("errno"), name)
    for step in (2, 3, 4):
        checkpoints.save(make_state(step))
        checkpoints.wait()
    (warning,) = messages(caplog, logging.WARNING)
    assert warning.startswith(f"{tmp_path / 'last.pt'} could not be saved: {os.strerror(disk.error)}\n")
    assert "the one of step 1 is kept, training continues" in warning
    assert remedy in warning
    assert checkpoints.failure == warning.splitlines()[0]
    assert step_of(tmp_path / "last.pt") == 1
    assert names_in(tmp_path) == ["last.pt"]

    disk.error = None
    checkpoints.save(make_state(5))
    checkpoints.wait()
    assert checkpoints.failure is None
    assert messages(caplog, logging.INFO) == [
        f"{tmp_path}: checkpoints are saved again, step 5 is on disk (3 could not be)"
    ]
    assert step_of(tmp_path / "last.pt") == 5
    assert len(messages(caplog, logging.WARNING)) == 1


def test_another_cause_is_another_warning(tmp_path, monkeypatch, caplog):
    disk = BrokenDisk(monkeypatch)
    checkpoints = CheckpointStore(tmp_path)
    for error in (28, 28, 5, 5):
        disk.error = error
        checkpoints.save(make_state())
        checkpoints.wait()
    assert len(messages(caplog, logging.WARNING)) == 2


def test_a_best_that_could_not_be_written_is_tried_again(tmp_path, monkeypatch):
    disk = BrokenDisk(monkeypatch)
    checkpoints = CheckpointStore(tmp_path)
    disk.error = 28
    checkpoints.save(make_state(1), names=("last.pt", "best.pt"))
    checkpoints.wait()
    assert names_in(tmp_path) == []
    disk.error = None
    checkpoints.save(make_state(2))
    checkpoints.wait()
    assert (step_of(tmp_path / "best.pt"), step_of(tmp_path / "last.pt")) == (1, 2)


def test_closing_tries_once_more(tmp_path, monkeypatch):
    disk = BrokenDisk(monkeypatch)
    checkpoints = CheckpointStore(tmp_path)
    disk.error = 28
    checkpoints.save(make_state(1), names=("best.pt",))
    checkpoints.save(make_state(2))
    checkpoints.close()
    assert checkpoints.failure is not None
    disk.error = None
    assert checkpoints.close()
    assert checkpoints.failure is None
    assert (step_of(tmp_path / "best.pt"), step_of(tmp_path / "last.pt")) == (1, 2)


def test_a_newer_best_makes_the_one_that_failed_needless(tmp_path, monkeypatch):
    disk = BrokenDisk(monkeypatch)
    checkpoints = CheckpointStore(tmp_path)
    disk.error = 28
    checkpoints.save(make_state(1), names=("best.pt",))
    checkpoints.wait()
    disk.error = None
    gate = Gate(monkeypatch)
    gate.may_go_on.release(9)
    checkpoints.save(make_state(2), names=("best.pt", "last.pt"))
    checkpoints.wait()
    assert gate.written == [("best.pt", 2)]


def test_a_fault_of_the_program_is_told_with_its_traceback_and_ends_nothing(tmp_path, monkeypatch, caplog):
    checkpoints = CheckpointStore(tmp_path)
    plain = store.write_snapshot

    def broken(*_, **__):
        raise ZeroDivisionError("made")

    monkeypatch.setattr(store, "write_snapshot", broken)
    checkpoints.save(make_state(1))
    checkpoints.wait()
    assert "could not be saved: made" in caplog.text and "ZeroDivisionError" in caplog.text
    monkeypatch.setattr(store, "write_snapshot", plain)
    checkpoints.save(make_state(2))
    checkpoints.wait()
    assert step_of(tmp_path / "last.pt") == 2


# ---------------------------------------------------------------------- which one to go on from


def fill(folder, **steps):
    for name, step in steps.items():
        save_checkpoint(folder / f"{name}.pt", make_state(step))


def test_newest_valid_prefers_last_then_the_numbers_then_best(tmp_path):
    assert latest_checkpoint(tmp_path / "missing") is None
    assert latest_checkpoint(tmp_path) is None
    fill(tmp_path, last=30, step_00000020=20, step_00000010=10, best=5)
    taken, told = [], []
    while True:
        try:
            path, state, problems = latest_checkpoint(tmp_path)
        except CheckpointError as error:
            assert str(error).count("is cut off or damaged") == 4
            assert all(name in str(error) for name in names_in(tmp_path))
            break
        taken.append((path.name, state["position"]["step"]))
        told.append(len(problems))
        path.write_bytes(path.read_bytes()[:-100])
    assert taken == [("last.pt", 30), ("step_00000020.pt", 20), ("step_00000010.pt", 10), ("best.pt", 5)]
    assert told == [0, 1, 2, 3]


def test_problems_name_the_file_and_the_cause(tmp_path):
    fill(tmp_path, step_00000020=20)
    (tmp_path / "last.pt").write_bytes(b"")
    assert latest_checkpoint(tmp_path)[2] == [f"{tmp_path / 'last.pt'} is empty"]


def test_other_files_are_no_candidates(tmp_path):
    fill(tmp_path, step_1=1, step_x=2, other=3, step_000000010=4)
    (tmp_path / "step_00000009.pt").mkdir()
    assert latest_checkpoint(tmp_path)[0].name == "step_000000010.pt"
