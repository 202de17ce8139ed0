"""Commands of one process and of several: how tests start them, and the settings that they share."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
SETTINGS = (
    "data.batch_size=100",
    "model=custom",
    "model.target=tests.support.rank_parts.Net",
    "plots=false",
    "augment.mixup_alpha=0.2",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.progress=false",
    "trainer.epochs=2",
    "trainer.log_every_steps=3",
    "trainer.ema_decay=0.9",
    "checkpoint.every_steps=4",
    "resume=auto",
)


def run(*command: str, folder: Path, seconds: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, with these environment variables besides those of all ranks."""
    environment = {**ENVIRONMENT, **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)
