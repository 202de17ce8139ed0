"""Data workers: slots of shared memory, deaths and full resources in words, signals, and clean ends."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import NoisySource
from made_loaders import RandomCrop, assert_equal_batches, make_loader, wait_until_gone
from made_loaders import children as all_children

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.data.loader import workers as workers_module
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.worker_errors import (
    DataWorkerError,
    WorkerSettings,
    explain_exit,
    explain_worker_error,
    raise_open_file_limit,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")

SETTINGS = WorkerSettings(num_workers=8, prefetch_batches=2, batch_size=64)
REPOSITORY = Path(__file__).resolve().parents[3]

_OTHERS: set[int] = set()


@pytest.fixture(autouse=True)
def workers_of_other_tests() -> None:
    """Workers that tests of other files have left behind are not counted here."""
    _OTHERS.clear()
    _OTHERS.update(all_children())


def children() -> set[int]:
    return all_children() - _OTHERS


class Acting(NoisySource):
    """400 images; reading number 20, the first of batch 5, calls `act`."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(count=400)
        self.act = act

    def read(self, index: int) -> np.ndarray:
        if index == 20:
            self.act()
        return super().read(index)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ---------------------------------------------------------------- shared memory


class Numbered(NoisySource):
    """Image n has the value n all over."""

    def read(self, index: int) -> np.ndarray:
        return np.full((8, 8, 3), index % 251, np.uint8)


def test_batches_keep_their_pixels_while_slots_are_reused() -> None:
    loader = make_loader(Numbered(count=120), num_workers=2, prefetch_batches=2)
    kept = []
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            kept.append(batch)
            if epoch == 1 and batch.number == 9:
                break  # what was made ahead is dropped
    loader.close()
    assert len(kept) == 30 + 10 + 30 + 30
    assert all(bool((batch.images == batch.indices[:, None, None, None]).all()) for batch in kept)
    assert not any(batch.images.is_shared() or batch.labels.is_shared() for batch in kept)


def test_kept_batches_hold_no_files_open() -> None:
    loader = make_loader(NoisySource(count=400), num_workers=2)
    kept = list(loader.epoch(0))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    kept += loader.epoch(1)
    assert len(kept) == 200 and len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208
    loader.close()


# ---------------------------------------------------------------- the three messages


def test_killed_worker_is_explained_and_loader_restarts(tmp_path: Path) -> None:
    died = tmp_path / "died"

    def die_once() -> None:
        if not died.exists():
            died.touch()
            kill_self()

    loader = make_loader(Acting(die_once), RandomCrop(), num_workers=2, shuffle=False)
    numbers = []
    with pytest.raises(DataWorkerError, match=r"was killed by the system \(SIGKILL\), most often .* memory") as caught:
        for batch in loader.epoch(2):
            numbers.append(batch.number)
    for setting in (
        "data.num_workers (now 2;",
        "data.prefetch_batches (now 2)",
        "data.batch_size (now 4)",
        "data.cache",
    ):
        assert setting in caught.value.remedy
    assert isinstance(caught.value, RunError)
    assert numbers == list(range(len(numbers))) and len(numbers) <= 5  # none is skipped or repeated
    assert not children()  # the other worker has ended
    again = list(loader.epoch(2, start_batch=97))
    loader.close()
    assert_equal_batches(again, list(make_loader(NoisySource(count=400), RandomCrop(), shuffle=False).epoch(2))[97:])


def test_death_is_raised_only_where_batches_are_awaited() -> None:
    """torch's own handler raises from the signal, be it in the middle of an optimizer step."""
    loader = make_loader(NoisySource(count=400), num_workers=2)
    batches = loader.epoch(0)
    next(batches)
    victim = min(children())
    os.kill(victim, signal.SIGKILL)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    torch.ones(100).sum()  # a step
    with pytest.raises(DataWorkerError, match="SIGKILL"):
        list(batches)
    assert not children() and signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


FULL_SHARED_MEMORY = """
    import sys
    sys.path.insert(0, {support!r})
    from made_images import NoisySource
    from made_loaders import children, make_loader
    from cvtrain.data.loader.worker_errors import DataWorkerError

    try:
        list(make_loader(NoisySource(), num_workers=2, image_size=1024).epoch(0))  # 5 slots of 15 MB
    except DataWorkerError as error:
        print(error.cause, len(children()))
"""


@pytest.mark.skipif(shutil.which("unshare") is None or os.getuid() != 0, reason="mounts a small /dev/shm")
def test_full_shared_memory_is_named(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$0" "$@"'
    process = start_script(tmp_path, FULL_SHARED_MEMORY, "unshare", "-m", "sh", "-c", mount)
    output, errors = process.communicate(timeout=120)
    if "unshare" in errors or "mount" in errors:
        pytest.skip(f"cannot mount here: {errors}")
    assert output.startswith("not enough shared memory for batches: /dev/shm has ") and " of 8 MB free" in output
    assert output.split()[-1] == "0" and errors == ""


@pytest.fixture
def few_open_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """At most 4 more files than are open now."""
    monkeypatch.setattr(workers_module, "raise_open_file_limit", lambda: None)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_open = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208
    free = [number for number in range(1000) if number not in is_open]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[4], limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's end of a half-made iterator
def test_too_many_open_files_are_named(few_open_files: None) -> None:
    with pytest.raises(DataWorkerError, match=r"^too many open files: the limit of this process is \d+") as caught:
        list(make_loader(NoisySource(), num_workers=2).epoch(0))
    assert "ulimit -n" in caught.value.remedy and "data.num_workers (now 2;" in caught.value.remedy
    assert not children()


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("exit_code", "cause", "remedy"),
    [
        (-signal.SIGBUS, "crashed (SIGBUS), as happens when shared memory is full: /dev/shm has", "--shm-size"),
        (-signal.SIGSEGV, "was ended by SIGSEGV", "data.num_workers=0"),
        (-99, "was ended by signal 99", "another program"),
        (3, "ended with exit code 3", "data.num_workers=0"),
    ],
)
def test_exit_codes_in_words(exit_code: int, cause: str, remedy: str) -> None:
    error = explain_exit(exit_code, SETTINGS)
    assert cause in error.cause and remedy in error.remedy
    assert str(error).splitlines()[1:] == [f"  {line}" for line in error.remedy.splitlines()]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
         "not enough shared memory"),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), "too many open"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "data workers could not be started: "),
        (ValueError("a bug"), None),
        (OSError("Caught OSError in DataLoader worker process 0.\nToo many open files: 'a.jpg'"), None),
    ],
)  # fmt: skip
def test_errors_of_transport_in_words(error: Exception, cause: str | None) -> None:
    explained = explain_worker_error(error, [], SETTINGS)
    assert (explained is None) == (cause is None)
    assert explained is None or explained.cause.startswith(str(cause))


def test_open_file_limit_is_raised_as_far_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = resource.RLIM_INFINITY
    for before, after in {
        (1024, 4096): (4096, 4096),
        (1024, 1_048_576): (65_536, 1_048_576),
        (1024, unlimited): (65_536, unlimited),
        (100_000, unlimited): None,
        (unlimited, unlimited): None,
        (4096, 4096): None,
    }.items():
        limits = []
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=before: limit)
        monkeypatch.setattr(resource, "setrlimit", lambda kind, limit, limits=limits: limits.append(limit))
        raise_open_file_limit()
        assert limits == ([] if after is None else [after])


# ---------------------------------------------------------------- exceptions of the dataset


def raise_config_error() -> None:
    raise ConfigError(key="data.kwargs.size", value=0, rule="must be positive", remedy="try 1")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_config_error_of_a_dataset_is_unchanged(num_workers: int) -> None:
    with pytest.raises(ConfigError) as caught:
        list(make_loader(Acting(raise_config_error), num_workers=num_workers, shuffle=False).epoch(0))
    assert str(caught.value) == "data.kwargs.size=0: must be positive\n  try 1"


def test_exception_carries_the_traceback_of_the_worker() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(make_loader(Acting(lambda: 1 // 0), num_workers=1, shuffle=False).epoch(0))
    assert "in read\n    self.act()" in str(caught.value) and not children()


def test_more_workers_than_cores_are_no_warning() -> None:
    count = 2 * (os.cpu_count() or 1) + 1
    loader = make_loader(NoisySource(count=4 * count), num_workers=count)  # warnings are errors here
    assert len(list(loader.epoch(0))) == loader.num_workers == count
    loader.close()


# ---------------------------------------------------------------- signals and ends


def test_workers_ignore_a_sigterm_to_the_whole_job() -> None:
    """A batch system sends it to all processes; the main one has to finish its step and to save."""
    loader = make_loader(NoisySource(count=400), num_workers=2)
    batches = loader.epoch(0)
    next(batches)
    workers = children()
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    assert len(list(batches)) == 99 and children() == workers
    loader.close()
    assert not children()


def test_workers_end_with_a_loader_that_is_not_closed() -> None:
    loader: BatchLoader | None = make_loader(NoisySource(), num_workers=2)
    assert loader is not None
    next(loader.epoch(0))
    assert len(children()) == 2
    loader = None
    assert not children()


UNCLOSED = """
    import signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    sys.path.insert(0, {support!r})
    from made_images import NoisySource
    from made_loaders import RandomCrop, children, make_loader

    loader = make_loader(NoisySource(count=4_000_000), RandomCrop(), num_workers=2, shuffle=False)
    try:
        for batch in loader.epoch(0):
            if batch.number == 1:
                print("children", *children(), flush=True)
                if {at_end}:
                    break
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
"""


@pytest.mark.parametrize(
    ("number", "status", "printed"),
    [(None, 0, ""), (signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")],
    ids=["end", "ctrl_c", "sigterm"],
)
def test_main_process_ends_quietly_with_its_workers(
    number: signal.Signals | None, status: int, printed: str, tmp_path: Path
) -> None:
    process = start_script(tmp_path, UNCLOSED, at_end=number is None)
    assert process.stdout is not None
    workers = {int(word) for word in process.stdout.readline().split()[1:]}
    if number is not None:
        os.killpg(process.pid, number)  # as a terminal does: to all processes
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (status, printed, "") and len(workers) == 2
    assert wait_until_gone(workers)


def test_workers_end_when_the_main_process_is_killed(tmp_path: Path) -> None:
    process = start_script(tmp_path, UNCLOSED, at_end=False)
    assert process.stdout is not None
    workers = {int(word) for word in process.stdout.readline().split()[1:]}
    process.kill()
    process.communicate(timeout=60)
    assert len(workers) == 2 and wait_until_gone(workers)


def start_script(tmp_path: Path, script: str, *command: str, **values: object) -> subprocess.Popen[str]:
    path = tmp_path / "main.py"
    path.write_text(textwrap.dedent(script.format(support=str(REPOSITORY / "tests" / "support"), **values)))
    return subprocess.Popen(
        [*command, sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )
