"""`wandb sweep` and `wandb agent`, the real programs, as a user's shell starts them, against the stand-in server."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from wandb_server import API_KEY
from wandb_sweep_server import Sweep, WandbSweepServer

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# A trial that takes about a second once its libraries are loaded.
QUICK = (
    "model.hidden=[8]",
    "data.batch_size=64",
    "data.num_workers=0",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=2",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.progress=false",
    "plots=false",
    "logger=wandb",
)
COMMAND = ("${env}", "python", "-m", "cvtrain")


class Programs:
    """Starts the programs in `folder`, with nothing of this machine's W&B accounts in their environment."""

    def __init__(self, folder: Path, server: WandbSweepServer | None = None, **variables: str) -> None:
        self.folder = folder
        self.server = server
        home = folder / "home"
        home.mkdir(exist_ok=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("WANDB_") and not name.lower().endswith("_proxy")
        }
        self.environment = kept | {
            "HOME": str(home),
            "NETRC": str(home / "netrc"),
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_API_KEY": API_KEY,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            # Its list of fonts takes seconds to make, and a home of one's own has none.
            "MPLCONFIGDIR": matplotlib.get_cachedir(),
            **({} if server is None else {"WANDB_BASE_URL": server.url}),
            **variables,
        }

    def create(self, spec: dict[str, Any]) -> Sweep:
        """The sweep that `wandb sweep FILE` makes on the server."""
        assert self.server is not None
        file = self.folder / f"{spec.get('name', 'sweep')}.yaml"
        file.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
        done = self.run([str(BIN / "wandb"), "sweep", str(file)])
        assert done.returncode == 0, done.stdout
        found = re.search(r"wandb agent \S*?(\w+)\s", done.stdout)
        assert found, done.stdout
        return self.server.sweeps[found[1]]

    def run(self, command: list[str], timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        process = self.start(command)
        output, _ = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, output)

    def start(self, command: list[str], **options: Any) -> "subprocess.Popen[str]":
        arguments: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        return subprocess.Popen(command, env=self.environment, cwd=self.folder, text=True, **(arguments | options))

    def agent(self, sweep: Sweep, *flags: str) -> "Said":
        return self.said([str(BIN / "wandb"), "agent", *flags, f"tester/{sweep.project}/{sweep.id}"])

    def said(self, command: list[str]) -> "Said":
        """Starts a program that says more than a pipe holds while nobody reads."""
        file = self.folder / f"said_{len(list(self.folder.glob('said_*')))}.txt"
        with file.open("w", encoding="utf-8") as stream:
            return Said(self.start(command, stdout=stream), file)


@dataclass
class Said:
    """A program, and the file with what it prints."""

    process: "subprocess.Popen[str]"
    file: Path

    @property
    def text(self) -> str:
        return self.file.read_text(encoding="utf-8")

    def end(self, seconds: float = 300) -> str:
        """What the program printed until its end."""
        self.process.wait(timeout=seconds)
        return self.text


def spec_of(
    parameters: dict[str, Any], *settings: str, macro: str = "${args_no_hyphens}", **keys: Any
) -> dict[str, Any]:
    """A grid over `parameters` whose trials are quick."""
    metric = {"name": "val/loss", "goal": "minimize"}
    command = [*COMMAND, *QUICK, *settings, macro]
    return {"project": "sp", "method": "grid", "metric": metric, "parameters": parameters, "command": command, **keys}


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
