"""Several real processes over gloo against one: the same run, folder and log, and the same end whatever happens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rank_runs import RUNS, compose, poison, train_steps

from cvtrain.assembly import assemble
from cvtrain.config.errors import ConfigError
from cvtrain.distributed.ranks import first_host, rank_of_process

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def run(*command: str, folder: Path, seconds: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)


# ---------------------------------------------------------------------- ranks


def test_a_process_knows_its_rank_from_torchrun():
    environment = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
    rank = rank_of_process(environment)
    assert (rank.rank, rank.local_rank, rank.world_size, rank.local_world_size, rank.node) == (5, 1, 8, 4, "1")
    assert not rank.is_main
    assert rank_of_process({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert rank_of_process({}) is None


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
    rank = rank_of_process(environment)
    assert (rank.rank, rank.local_rank, rank.world_size, rank.local_world_size) == (9, 1, 10, 2)
    assert environment["MASTER_ADDR"] == "gpu03" and environment["MASTER_PORT"] == str(12_000 + 77 * 16)
    assert rank_of_process({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None
    assert first_host("node1,node2") == "node1" and first_host("r[1-2]n-ib") == "r1n-ib"


@pytest.mark.parametrize("variables", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_an_environment_that_contradicts_itself_is_refused(variables):
    with pytest.raises(ConfigError, match="RANK"):
        rank_of_process(variables)


# ---------------------------------------------------------------------- two and four ranks beside one process


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process comes to: losses, figures and weights of each of `RUNS`."""
    found = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, overrides in RUNS.items():
        made = assemble(compose(overrides), tmp_path_factory.mktemp("alone") / name)
        if name == "skipping":
            poison(made.trainer, on=True)
        losses = train_steps(made)
        found[name] = {"losses": losses, "evaluation": made.trainer.last_evaluation, "steps": made.trainer.step}
        made.loaders.close()
        made.trainer.store.close()
        made.logger.finish(0)
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_come_to_what_one_process_comes_to(count, alone, tmp_path):
    script = str(ROOT / "tests" / "rank_checks.py")
    done = run(*TORCHRUN, f"--nproc-per-node={count}", script, str(tmp_path), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    check_talk(found["sums"], count)
    for name, ranks in found["runs"].items():
        one = alone[name]
        # Equal over ranks to the bit, and to one process but for the order of sums.
        assert len(ranks["prints"]) == count and len(set(ranks["prints"])) == 1, name
        assert ranks["losses"] == pytest.approx(one["losses"], rel=1e-5), name
        assert ranks["metrics"]["loss"] == pytest.approx(one["evaluation"].metrics["loss"], rel=1e-5), name
        # Every image of val once, in the order of the split.
        assert ranks["num_images"] == 359 and ranks["indices"] == list(range(359)), name
        assert ranks["labels"] == one["evaluation"].predictions.labels.tolist(), name
        assert ranks["steps"] == [one["steps"]] * count, name
    assert found["runs"]["starved"]["micro_batches"] == [2] * count
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
