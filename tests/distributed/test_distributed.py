"""Several real processes over gloo against one: the same run, folder and log, and the same end whatever happens."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rank_commands import ENVIRONMENT, ROOT, SETTINGS, TORCHRUN, run
from rank_runs import RUNS, compose, leave_gaps, poison, train_steps
from wandb_server import API_KEY, WandbServer

from cvtrain.config.errors import ConfigError
from cvtrain.distributed.env import drop_srun_rank, first_host, rank_from_env
from cvtrain.distributed.process_group import ProcessGroup, device_for_rank, sees_one_gpu_each
from cvtrain.runtime import device as runtime
from cvtrain.training.build import build_run, init_runtime

sys.path.insert(0, str(ROOT / "scripts"))
from chaos_compare import differences

# ---------------------------------------------------------------------- ranks


def test_a_process_knows_its_rank_from_torchrun():
    environment = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
    rank = rank_from_env(environment)
    assert (rank.rank, rank.local_rank, rank.world_size, rank.local_world_size, rank.node) == (5, 1, 8, 4, "1")
    assert not rank.is_main_process
    assert rank_from_env({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert rank_from_env({}) is None


def test_a_process_knows_its_rank_from_srun_but_not_in_the_batch_script():
    environment = {
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "2",
        "SLURM_STEP_NUM_TASKS": "10",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2),2",
        "SLURM_STEP_NODELIST": "gpu[03-05,09],login1",
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
    }
    rank = rank_from_env(environment)
    assert (rank.rank, rank.local_rank, rank.world_size, rank.local_world_size) == (9, 1, 10, 2)
    assert environment["MASTER_ADDR"] == "gpu03" and environment["MASTER_PORT"] == str(12_000 + 77 * 16)
    assert rank_from_env({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None
    assert first_host("node1,node2") == "node1" and first_host("r[1-2]n-ib") == "r1n-ib"


def test_each_task_of_srun_searches_by_itself_and_torchrun_starts_no_search():
    step = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    assert rank_from_env(dict(step)).rank == 1
    drop_srun_rank(step)
    assert rank_from_env(step) is None  # nor are its trials, which inherit this
    drop_srun_rank({"RANK": "0", "WORLD_SIZE": "1"})
    with pytest.raises(ConfigError, match="leave torchrun out"):
        drop_srun_rank({"RANK": "0", "WORLD_SIZE": "2"})


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_a_trial_of_an_agent_that_srun_started_is_no_rank():
    step = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    for variables, is_rank in (({}, False), ({"WANDB_RUN_ID": "r1"}, True)):
        # What srun started: an agent, or the processes of a trial, which an agent's command gave srun.
        task = subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], **variables})
        try:
            while not Path(f"/proc/{task.pid}/environ").read_bytes():  # for a moment after it was started
                time.sleep(0.01)
            trial = {**step, "WANDB_RUN_ID": "r1", "SLURM_TASK_PID": str(task.pid)}
            assert (rank_from_env(trial) is not None) == is_rank
        finally:
            task.kill()
            task.wait()
    gone = {**step, "WANDB_RUN_ID": "r1", "SLURM_TASK_PID": str(task.pid)}
    assert rank_from_env(gone).rank == 1


def test_processes_that_know_their_rank_alone_find_out_who_shares_a_machine(tmp_path):
    """As in containers that a platform starts with RANK, WORLD_SIZE and MASTER_ADDR."""
    program = (
        "from cvtrain.distributed.env import rank_from_env as rank\n"
        "from cvtrain.distributed.rendezvous import DistributedRendezvous\n"
        "session = DistributedRendezvous(rank())\n"
        "world = session.start({}) if rank().is_main_process else (session.wait_for_job(), session.start({}))[1]\n"
        "print(world.local_rank, world.local_world_size)\n"
        "world.barrier()\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "3"}
    # The third is on another machine, as GROUP_RANK tells it.
    machines = ({}, {}, {"GROUP_RANK": "other"})
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**ENVIRONMENT, **meeting, "RANK": str(number), **machine},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, machine in enumerate(machines)
    ]
    assert [process.communicate(timeout=120)[0] for process in started] == ["0 2\n", "1 2\n", "0 1\n"]


@pytest.mark.parametrize("variables", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_an_environment_that_contradicts_itself_is_refused(variables):
    with pytest.raises(ConfigError, match="RANK"):
        rank_from_env(variables)


@pytest.mark.parametrize(
    ("seen", "own"),
    [
        ([("0", ("g1",)), ("0", ("g2",)), ("1", ("g1",))], True),  # as with --gpus-per-task=1
        ([("0", ("g1", "g2")), ("0", ("g1", "g2"))], False),
        ([("0", ("g1",)), ("0", ("g1",))], False),
        ([("0", ()), ("0", ())], False),
    ],
)
def test_a_process_that_sees_one_gpu_of_its_own_takes_it(seen, own, monkeypatch):
    class Several(ProcessGroup):
        rank, world_size, local_rank, local_world_size = 1, len(seen), 1, 2

        def all_gather(self, value):
            return seen

    assert sees_one_gpu_each([], Several()) == own
    monkeypatch.setattr(runtime, "available_devices", lambda: ["cuda:0", "cpu"])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    if own:
        assert device_for_rank("auto", Several()) == torch.device("cuda:0")
    else:
        with pytest.raises(ConfigError, match="2 processes of this machine see 1 GPUs"):
            device_for_rank("auto", Several())


# ---------------------------------------------------------------------- two and four ranks beside one process


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process comes to: losses, figures and weights of each of `RUNS`."""
    found = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, overrides in RUNS.items():
        made = build_run(compose(overrides), tmp_path_factory.mktemp("alone") / name)
        if name == "gaps":
            leave_gaps(made.trainer)
        if name == "skipping":
            poison(made.trainer, on=True)
        losses = train_steps(made)
        found[name] = {"losses": losses, "evaluation": made.trainer.last_evaluation, "steps": made.trainer.step}
        made.loaders.close()
        made.trainer.store.close()
        made.logger.finish(0)
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_ranks_come_to_what_one_process_comes_to(count, alone, tmp_path):
    script = str(ROOT / "tests" / "support" / "rank_checks.py")
    done = run(*TORCHRUN, f"--nproc-per-node={count}", script, str(tmp_path), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    check_talk(found["sums"], count)
    for name, ranks in found["runs"].items():
        one = alone[name]
        # Equal over ranks to the bit, and to one process but for the order of sums.
        assert len(ranks["prints"]) == count and len(set(ranks["prints"])) == 1, name
        # A last batch that has no image for some rank is left out; no run here has one.
        assert ranks["losses"] == pytest.approx(one["losses"], rel=1e-5), name
        assert ranks["metrics"]["loss"] == pytest.approx(one["evaluation"].metrics["loss"], rel=1e-5), name
        # Every image of val once, in the order of the split.
        assert ranks["num_images"] == 359 and ranks["indices"] == list(range(359)), name
        assert ranks["labels"] == one["evaluation"].predictions.labels.tolist(), name
        assert ranks["steps"] == [one["steps"]] * count, name
    assert found["runs"]["skipping"]["skipped_steps"] == [1] * count
    assert [end for _, end in found["resumed"]] == ["all epochs done"] * count
    assert len({monitor for monitor, _ in found["resumed"]}) == 1


def check_talk(found, count):
    total = float(sum(range(count)))
    assert found["sum"] == [[total] * 3] * count
    assert found["all"] == [[False, True]] * count
    assert found["numbers"] == [[total, float(count)]] * count
    assert found["broadcast"] == [{"from": 0}] * count
    assert found["copy"] == [[0, 0]] * count
    assert found["gather"] == [count] + [0] * (count - 1)


# ---------------------------------------------------------------------- the command line


def cvtrain(folder: Path, name: str, *overrides: str, start: tuple[str, ...] = (), **variables: str):
    """A run in `folder`/`name`: by torchrun if `start` is given, else by itself."""
    command = (*start, "-m", "cvtrain") if start else (sys.executable, "-m", "cvtrain")
    return run(*command, *SETTINGS, f"hydra.run.dir={folder / name}", *overrides, folder=folder, **variables)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of two processes that nothing disturbed, started by `trainer.devices`."""
    folder = tmp_path_factory.mktemp("whole")
    done = cvtrain(folder, "whole", "trainer.devices=2")
    assert (done.returncode, done.stderr) == (0, "")
    # One of them speaks.
    assert len(re.findall(r"^ +1/2 +15 ", done.stdout, re.M)) == 1
    assert done.stdout.count("done: all epochs done, 30 steps") == 1
    log = (folder / "whole" / "train.log").read_text()
    assert len(re.findall(r" 1/2 +15 ", log)) == 1 and "[rank 1]" not in log
    return folder / "whole"


def test_a_killed_rank_is_started_again_and_the_end_is_the_same_to_the_bit(whole, tmp_path):
    server = WandbServer()
    variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": API_KEY, "WANDB_ERROR_REPORTING": "false"}
    try:
        done = cvtrain(
            tmp_path,
            "killed",
            "logger=wandb",
            start=(*TORCHRUN, "--nproc-per-node=2", "--max-restarts=2"),
            FAIL_AT="18:1:kill",
            FAIL_MARK=str(tmp_path / "mark"),
            **variables,
        )
        assert done.returncode == 0, done.stderr
        assert "resuming from" in done.stdout and "step 16, 1 epochs done" in done.stdout
        assert differences(whole, tmp_path / "killed") == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "mark"]
        # One run at W&B for both ranks and both attempts.
        (logged,) = server.runs.values()
        assert logged.complete and logged.exit_code == 0
        assert [row["val/loss"] for row in logged.history if "val/loss" in row]
    finally:
        server.close()


def test_a_failing_rank_ends_all_with_its_message_once(tmp_path):
    done = cvtrain(tmp_path, "failed", "trainer.devices=2", FAIL_AT="3:1:raise")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1 and done.stderr.count("rank 1 fails at step 3") == 1
    log = (tmp_path / "failed" / "train.log").read_text()
    assert re.search(r"ERROR cvtrain: \[rank 1\] rank 1 fails at step 3", log)
    assert "has ended" not in done.stdout + done.stderr + log


@pytest.mark.slow
def test_a_rank_out_of_memory_ends_all(tmp_path):
    done = cvtrain(tmp_path, "failed", "trainer.devices=2", FAIL_AT="3:1:memory")
    assert done.returncode == 1
    assert done.stderr.count("error: out of memory on the device") == 1 and "Traceback" not in done.stderr
    assert "set trainer.grad_accum_steps=2" in done.stderr


def test_cpu_ranks_refuse_sync_batchnorm():
    class Several(ProcessGroup):
        world_size = local_world_size = 2

    config = compose(("trainer.sync_batchnorm=true",))
    with pytest.raises(ConfigError, match=r"trainer.sync_batchnorm=true: torch synchronizes batch norm over GPUs only"):
        init_runtime(config, Several())


def test_a_wrong_command_is_answered_once_and_leaves_nothing(tmp_path):
    start = (*TORCHRUN, "--nproc-per-node=2", "-m", "cvtrain")
    done = run(*start, "optimzer.lr=1", "trainer.epochs=-1", folder=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: optimzer.lr=1: no such setting") == 1
    assert done.stderr.count("error: trainer.epochs=-1") == 1
    assert re.search(r"exitcode +: 2 ", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_to_one_rank_stops_all_at_one_step(number, code, whole, tmp_path):
    done = cvtrain(tmp_path, "stopped", "trainer.devices=2", FAIL_AT=f"5:1:{number}")
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.count(f"{number}: saving, then ending") == 1
    assert cvtrain(tmp_path, "stopped", "trainer.devices=2").returncode == 0
    assert differences(whole, tmp_path / "stopped") == []


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    done = cvtrain(tmp_path, "two", "trainer.devices=2", FAIL_AT="5:0:SIGTERM")
    assert done.returncode == 143
    done = cvtrain(tmp_path, "two", "trainer.devices=3")
    assert done.returncode == 0
    assert done.stdout.count("the run had 2 processes so far and resumes with 3") == 1
    assert "done: all epochs done, 30 steps" in done.stdout


@pytest.mark.slow
def test_an_unreadable_image_ends_all_and_what_was_learnt_is_kept(tmp_path):
    for split, count in (("train", 40), ("val", 12)):
        for index in range(count):
            path = tmp_path / "photos" / split / f"class{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(path)
    (tmp_path / "photos" / "train" / "class0" / "broken.png").write_bytes(b"no image")
    overrides = ("data=custom", f"data.root={tmp_path / 'photos'}", "data.image_size=8", "data.batch_size=8")
    options = ("model=custom", "model.target=tests.support.rank_parts.Net", "augment=none", "trainer.devices=2")
    done = cvtrain(tmp_path, "broken", *overrides, *options, "trainer.epochs=3")
    assert done.returncode == 1
    assert len(re.findall(r"^error: .*broken.png", done.stderr, re.MULTILINE)) == 1 and "Traceback" not in done.stderr
    assert "cache: in RAM" in done.stdout  # one for both
    again = cvtrain(tmp_path, "skipped", *overrides, *options, "data.on_bad_image=skip")
    assert again.returncode == 0, again.stderr
    rows = (tmp_path / "skipped" / "skipped_images.csv").read_text().splitlines()
    assert len(rows) == 2 and "broken.png" in rows[1]
    summary = json.loads((tmp_path / "skipped" / "summary.json").read_text())
    assert summary["skipped_images"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "words"), [("train", "epoch 1 had nothing to train on"), ("val", "none of 4 images")]
)
def test_a_split_of_unreadable_images_ends_all(tmp_path, broken, words):
    """A process that is alone hears of it from its loader; of several, each saw nothing but a few bad images."""
    for split in ("train", "val"):
        for index in range(4):
            path = tmp_path / "photos" / split / f"class{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if split == broken:
                path.write_bytes(b"no image")
            else:
                Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(path)
    overrides = ("data=custom", f"data.root={tmp_path / 'photos'}", "data.image_size=8", "data.batch_size=4")
    skipping = ("data.on_bad_image=skip", "augment=none", "trainer.devices=2")
    done = cvtrain(tmp_path, "run", *overrides, *skipping)
    assert done.returncode == 1
    assert len(re.findall(f"^error: {words}", done.stderr, re.MULTILINE)) == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_each_trial_of_a_multirun_gets_its_processes(tmp_path):
    overrides = ("--multirun", "trainer.devices=2", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep a", "resume=null")
    done = run(sys.executable, "-m", "cvtrain", *SETTINGS[:-1], *overrides, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    ends = [json.loads((tmp_path / "sweep a" / job / "summary.json").read_text())["end_reason"] for job in "01"]
    assert ends == ["all epochs done"] * 2
