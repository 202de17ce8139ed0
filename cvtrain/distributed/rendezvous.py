"""What comes before and after the talk of the ranks: rank 0 decides what is run, and one of them says what failed."""

import json
import os
import time
from typing import Any

from cvtrain.config.errors import ConfigError
from cvtrain.distributed.env import Rank, restart_count
from cvtrain.distributed.errors import LostProcessError, PeerFailedError

EXIT_FAILED, EXIT_WRONG_COMMAND = 1, 2
# Those who wait for rank 0's decision have loaded torch by then.
SECONDS_TO_READ = 15.0


class Rendezvous:
    """A process that is alone. `SharedSession` is the same for one of several."""

    is_synced = False

    def claims(self, exit_code: int) -> bool:
        """True for the process that failed first, which alone says why."""
        return True

    def tells(self, error: Exception) -> bool:
        """Whether this process is the one that says why the run ends."""
        if isinstance(error, (LostProcessError, PeerFailedError)):
            return False
        return self.claims(EXIT_WRONG_COMMAND if isinstance(error, ConfigError) else EXIT_FAILED)

    def exit_code(self) -> int:
        """How the run ends for a process that did not fail by itself."""
        return EXIT_FAILED

    def end(self, exit_code: int) -> None:
        """Rank 0 will start nothing any more: those who wait for its start end with its exit code."""

    def start(self, plan: dict[str, Any]) -> Any:
        """Let all processes run `plan` (JSON values), and meet them; gives the `ProcessGroup`."""
        from cvtrain.distributed.process_group import SINGLE_PROCESS

        return SINGLE_PROCESS


class SharedSession(Rendezvous):
    """One of several processes. Its store is reached when it is first needed, which loads torch."""

    is_synced = True

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self._store: Any = None
        self._claimed: bool | None = None
        self._is_started = False

    @property
    def store(self) -> Any:
        if self._store is None:
            import torch.distributed as dist
            from torch.distributed.rendezvous import rendezvous

            from cvtrain.distributed.process_group import PATIENCE

            try:
                place = rendezvous("env://", self.rank.rank, self.rank.world_size, timeout=PATIENCE)
                store, _, _ = next(place)
            except (RuntimeError, ValueError) as error:
                raise LostProcessError(f"the processes of this run cannot meet: {error}") from error
            self._store = dist.PrefixStore(f"cvtrain/attempt_{restart_count()}", store)
        return self._store

    def claims(self, exit_code: int) -> bool:
        if self.rank.is_main_process and not self._is_started:
            return True  # the others wait in silence, and are told by `end`
        if self._claimed is None:
            try:
                self._claimed = self.store.add("failures", 1) == 1
                if self._claimed:
                    self.store.set("exit_code", str(exit_code))
            except Exception:  # the store was on a machine that is gone
                self._claimed = True
        return self._claimed

    def exit_code(self) -> int:
        try:
            return int(self.store.get("exit_code")) if self.store.check(["exit_code"]) else EXIT_FAILED
        except Exception:  # as above
            return EXIT_FAILED

    def end(self, exit_code: int) -> None:
        if self.rank.is_main_process and not self._is_started:
            self._is_started = True
            self.store.set("plan", json.dumps({"exit_code": exit_code}))
            # Where the store is in this process, it stays until the others have read.
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                self._wait_for_readers()

    def start(self, plan: dict[str, Any]) -> Any:
        from cvtrain.distributed.process_group import TorchProcessGroup

        if self.rank.is_main_process:
            self._is_started = True
            self.store.set("plan", json.dumps(plan))
        return TorchProcessGroup(self.rank, self.store)

    def wait_for_job(self) -> dict[str, Any]:
        """What rank 0 has decided on: `plan` of `start`, or {"exit_code": ...}."""
        try:
            plan = json.loads(self.store.get("plan"))
            if "exit_code" in plan:
                self.store.add("read", 1)
        except Exception as error:
            raise LostProcessError(f"rank 0 cannot be reached: {error}") from error
        return plan

    def _wait_for_readers(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_READ
        while self.store.add("read", 0) < self.rank.world_size - 1 and time.monotonic() < deadline:
            time.sleep(0.02)
