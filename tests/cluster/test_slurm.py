"""A real Slurm of one node: jobs that are preempted or run out of time end with the weights of an undisturbed one.

scripts/slurm_one_node.sh starts it; it needs the packages slurm-wlm and munge.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wandb_programs import Programs, spec_of
from wandb_sweep_server import WandbSweepServer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from chaos_compare import differences  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SLURM = ROOT / "scripts" / "slurm_one_node.sh"
SCRIPTS = ROOT / "scripts" / "slurm"
SETTINGS = (
    "data=dataset",
    "data.target=tests.support.slow_parts.Digits",
    "data.train_kwargs.split=train",
    "data.val_kwargs.split=val",
    "data.image_size=8",
    "data.channels=1",
    "data.mean=[0.3]",
    "data.std=[0.4]",
    "data.batch_size=16",
    "data.num_workers=0",
    "model=custom",
    "model.target=tests.support.slow_parts.Net",
    "augment=none",
    "augment.mixup_alpha=0.2",
    "plots=false",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.progress=false",
    "trainer.epochs=3",
    "trainer.ema_decay=0.9",
    "trainer.log_every_steps=3",
    # what a signal does not save is lost
    "checkpoint.every_minutes=null",
)
PATIENCE = 400.0


class Cluster:
    """Slurm's commands in a folder, and the environment in which its jobs run."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {
            "SLURM_CONF": config,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "CVTRAIN": f"{sys.executable} -m cvtrain",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def slow(self, mark: Path, seconds: float) -> dict[str, str]:
        """Variables that make each training step last, and leave a mark when the first begins."""
        return {"SLOW_AT": "step", "SLOW_MARK": str(mark), "SLOW_SECONDS": str(seconds)}

    def call(self, *command: str, **variables: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def submit(self, *arguments: str, **variables: str) -> str:
        """The id of a new job of one core."""
        return self.call("sbatch", "--parsable", "--cpus-per-task=1", *arguments, **variables)

    def preempt(self) -> None:
        """Have a job of the other partition take the whole node for a moment."""
        self.call("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")

    def wait(self, job: str) -> None:
        """Wait until the job, with all tasks of an array, has left the queue."""
        wait_for(lambda: job not in self.call("squeue", "--noheader", "--format=%F").split())

    def show(self, job: str) -> str:
        return self.call("scontrol", "show", "job", job)

    def said(self, job: str) -> str:
        return (self.folder / f"slurm-{job}.out").read_text(encoding="utf-8")


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)} missing): apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("cluster")
    daemons = tempfile.mkdtemp(prefix="slurm-one-node-")  # munge wants a path that everybody may enter
    environment = os.environ | {"SLURM_ONE_NODE_DIR": daemons, "SLURM_ONE_NODE_CPUS": "2"}
    started = subprocess.run([SLURM, "start"], env=environment, capture_output=True, text=True, timeout=60)
    if started.returncode:
        shutil.rmtree(daemons)
        pytest.skip(f"Slurm does not start here: {started.stderr.strip()}")
    try:
        yield Cluster(folder, started.stdout.strip().rpartition("=")[2])
    finally:
        subprocess.run([SLURM, "stop"], env=environment, check=True, timeout=120)
        shutil.rmtree(daemons)


@pytest.fixture(scope="module")
def whole(cluster) -> Path:
    """The folder of an undisturbed job."""
    job = cluster.submit(str(SCRIPTS / "train.sbatch"), *SETTINGS)
    cluster.wait(job)
    folder = cluster.folder / "runs" / "slurm" / job
    assert (folder / "summary.json").exists(), cluster.said(job)
    return folder


def test_a_preempted_job_ends_with_the_same_weights(cluster, whole):
    mark = cluster.folder / "preempted"
    job = cluster.submit(str(SCRIPTS / "train.sbatch"), *SETTINGS, **cluster.slow(mark, 0.4))
    wait_for(mark.exists)
    time.sleep(1.5)
    cluster.preempt()
    cluster.wait(job)
    said = cluster.said(job)
    assert "SIGUSR1: saving, then ending" in said
    assert f"resuming from runs/slurm/{job}/checkpoints/last.pt (step" in said
    assert differences(whole, cluster.folder / "runs" / "slurm" / job) == []


def test_a_job_whose_time_is_up_goes_on(cluster, whole):
    mark = cluster.folder / "time"
    # Slurm looks at the time now and then: the signal comes between 60 s and 120 s after the start.
    limits = ("--time=00:03:00", "--signal=B:USR1@60")
    job = cluster.submit(*limits, str(SCRIPTS / "train.sbatch"), *SETTINGS, **cluster.slow(mark, 5.0))
    cluster.wait(job)
    said = cluster.said(job)
    assert "SIGUSR1: saving, then ending" in said
    assert f"resuming from runs/slurm/{job}/checkpoints/last.pt (step" in said
    assert differences(whole, cluster.folder / "runs" / "slurm" / job) == []


def test_an_array_of_trials(cluster, whole):
    lines = ("seed=0", "# none", "seed=1 name='two words'")
    (cluster.folder / "trials.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    job = cluster.submit("--array=1-3", str(SCRIPTS / "sweep_array.sbatch"), "trials.txt", *SETTINGS)
    cluster.wait(job)
    folder = cluster.folder / "runs" / "slurm" / job
    assert sorted(path.name for path in folder.iterdir()) == ["1", "3"]
    assert differences(whole, folder / "1") == []
    assert differences(whole, folder / "3") != []
    assert "name=two words" in (folder / "3" / "overrides.yaml").read_text()


def test_preempted_trials_of_hydras_launcher_go_on_by_themselves(cluster, whole):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    mark = cluster.folder / "launcher"
    command = [sys.executable, "-m", "cvtrain", "-m", "hydra/launcher=slurm_cpu", "hydra.launcher.cpus_per_task=1"]
    sweep = subprocess.Popen(
        [*command, "hydra.sweep.dir=sweep", *SETTINGS, "seed=0,1"],
        cwd=cluster.folder,
        env=cluster.environment | cluster.slow(mark, 2.0),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: len(list(cluster.folder.glob("sweep/*/metrics.jsonl"))) == 2)
    cluster.preempt()
    output, _ = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 0, output
    for trial in ("0", "1"):
        log = (cluster.folder / "sweep" / trial / "train.log").read_text(encoding="utf-8")
        assert "SIGUSR2: saving, then ending" in log
        assert f"resuming from sweep/{trial}/checkpoints/last.pt (step" in log
    assert differences(whole, cluster.folder / "sweep" / "0") == []


def test_a_cancelled_job_saves_and_stays_out(cluster):
    mark = cluster.folder / "cancelled"
    job = cluster.submit(str(SCRIPTS / "train.sbatch"), *SETTINGS, **cluster.slow(mark, 0.4))
    wait_for(mark.exists)
    time.sleep(1.5)
    cluster.call("scancel", "--full", job)
    cluster.wait(job)
    assert "SIGTERM: saving, then ending" in cluster.said(job)
    assert "JobState=CANCELLED" in cluster.show(job)
    assert (cluster.folder / "runs" / "slurm" / job / "checkpoints" / "last.pt").exists()


def test_agents_of_wandb_as_an_array(cluster):
    server = WandbSweepServer()
    try:
        programs = Programs(cluster.folder, server)
        sweep = programs.create(spec_of({"optimizer.lr": {"values": [0.1, 0.01, 0.001, 0.0001]}}, name="array"))
        variables = {name: value for name, value in programs.environment.items() if name.startswith("WANDB_")}
        address = f"tester/{sweep.project}/{sweep.id}"
        job = cluster.submit("--array=1-2", str(SCRIPTS / "wandb_agents.sbatch"), address, **variables)
        cluster.wait(job)
        assert sorted(server.states().values()) == ["finished"] * 4
        assert len(server.agents) == 2
    finally:
        server.close()
