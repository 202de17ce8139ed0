"""Before and after the collectives: rank 0 sends the others the job to run, and one rank reports a failure."""

import json
import os
import time
from typing import Any

from cvtrain.config.errors import ConfigError
from cvtrain.distributed.env import Rank
from cvtrain.distributed.errors import LostProcessError, PeerFailedError

EXIT_FAILED, EXIT_WRONG_COMMAND = 1, 2
# For the other ranks to read the job; they have loaded torch by then.
READ_TIMEOUT_SECONDS = 15.0


class Rendezvous:
    """A run of one process. `DistributedRendezvous` is the same for one rank of several."""

    is_distributed = False

    def claim_failure(self, exit_code: int) -> bool:
        """Return True in the rank that failed first, which alone reports why."""
        return True

    def should_report(self, error: Exception) -> bool:
        """Return True if this rank reports why the run ends."""
        if isinstance(error, (LostProcessError, PeerFailedError)):
            return False
        return self.claim_failure(EXIT_WRONG_COMMAND if isinstance(error, ConfigError) else EXIT_FAILED)

    def exit_code(self) -> int:
        """Return the exit code of a rank that did not fail itself."""
        return EXIT_FAILED

    def end(self, exit_code: int) -> None:
        """End the ranks that wait for a job with rank 0's exit code, if no job was started."""

    def start(self, job: dict[str, Any]) -> Any:
        """Send `job` (JSON values) to all ranks, wait for them and return the `ProcessGroup`."""
        from cvtrain.distributed.process_group import SINGLE_PROCESS

        return SINGLE_PROCESS


class DistributedRendezvous(Rendezvous):
    """One rank of several. Connects to the store when it is first needed, which loads torch."""

    is_distributed = True

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self._store: Any = None
        self._has_claimed: bool | None = None
        self._has_started = False

    @property
    def store(self) -> Any:
        if self._store is None:
            import torch.distributed as dist
            from torch.distributed.rendezvous import rendezvous

            from cvtrain.distributed.process_group import TIMEOUT

            try:
                connected = rendezvous("env://", self.rank.rank, self.rank.world_size, timeout=TIMEOUT)
                store, _, _ = next(connected)
            except (RuntimeError, ValueError) as error:
                raise LostProcessError(f"the processes of this run cannot connect: {error}") from error
            # Messages of the ranks before a restart by torchrun must not mix with these.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = dist.PrefixStore(f"cvtrain/attempt_{attempt}", store)
        return self._store

    def claim_failure(self, exit_code: int) -> bool:
        if self.rank.is_main_process and not self._has_started:
            return True  # the others wait for the job, and end with `end`
        if self._has_claimed is None:
            try:
                self._has_claimed = self.store.add("failures", 1) == 1
                if self._has_claimed:
                    self.store.set("exit_code", str(exit_code))
            except Exception:  # the store was on a machine that is gone
                self._has_claimed = True
        return self._has_claimed

    def exit_code(self) -> int:
        try:
            return int(self.store.get("exit_code")) if self.store.check(["exit_code"]) else EXIT_FAILED
        except Exception:  # as above
            return EXIT_FAILED

    def end(self, exit_code: int) -> None:
        if self.rank.is_main_process and not self._has_started:
            self._has_started = True
            self.store.set("job", json.dumps({"exit_code": exit_code}))
            # Where the store is in this process, it stays until the others have read.
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                self._wait_for_readers()

    def start(self, job: dict[str, Any]) -> Any:
        from cvtrain.distributed.process_group import TorchProcessGroup

        if self.rank.is_main_process:
            self._has_started = True
            self.store.set("job", json.dumps(job))
        return TorchProcessGroup(self.rank, self.store)

    def wait_for_job(self) -> dict[str, Any]:
        """Return the job that rank 0 has started, or {"exit_code": ...}."""
        try:
            job = json.loads(self.store.get("job"))
            if "exit_code" in job:
                self.store.add("read", 1)
        except Exception as error:
            raise LostProcessError(f"rank 0 cannot be reached: {error}") from error
        return job

    def _wait_for_readers(self) -> None:
        deadline = time.monotonic() + READ_TIMEOUT_SECONDS
        while self.store.add("read", 0) < self.rank.world_size - 1 and time.monotonic() < deadline:
            time.sleep(0.02)
