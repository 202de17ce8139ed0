"""Workers that die, batches that cannot be sent, and failures that travel from a worker to the main process."""

import ctypes
import faulthandler
import gc
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import NoisySource
from test_batch_loader import RandomCrop, assert_equal_batches, make_loader, wait_until_gone
from test_batch_loader import children as all_children

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.data.loader import worker_errors as worker_faults
from cvtrain.data.loader import worker_loader, worker_pool, worker_process
from cvtrain.data.loader.batch import Batch
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.worker_errors import (
    DataWorkerError,
    PoolSettings,
    explain_death,
    explain_transport,
    raise_open_file_limit,
)

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals"),
    # The news of a death comes by a signal. Where that finds Python in a weak reference's callback, Python prints what
    # is raised there and goes on, and torch's own look at the workers comes some seconds later.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SETTINGS = PoolSettings(num_workers=8, prefetch_batches=2, batch_size=64)

_OTHERS: set[int] = set()


@pytest.fixture(autouse=True)
def workers_of_other_tests() -> None:
    """Workers that tests of other files have left behind are not counted here."""
    _OTHERS.clear()
    _OTHERS.update(all_children())


def children() -> set[int]:
    return all_children() - _OTHERS


class Fatal(NoisySource):
    """400 images; reading number 20, the first of batch 6, ends the process or raises, as `act` does."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(count=400)
        self.act = act

    def read(self, index: int) -> np.ndarray:
        if index == 20:
            self.act()
        time.sleep(0.002)
        return super().read(index)


def run_into(loader: BatchLoader) -> tuple[DataWorkerError, list[int], float]:
    """The fault of an epoch, the numbers of the batches before it, and its seconds."""
    start, numbers = time.monotonic(), []
    with pytest.raises(DataWorkerError) as caught:
        for batch in loader.epoch(2):
            numbers.append(batch.number)
    return caught.value, numbers, time.monotonic() - start


def kill_self(number: int) -> Callable[[], object]:
    def kill() -> None:
        faulthandler.disable()  # pytest's, which would print all stacks
        os.kill(os.getpid(), number)

    return kill


def crash() -> None:
    faulthandler.disable()
    ctypes.string_at(0)


# ---------------------------------------------------------------- death


@pytest.mark.parametrize(
    ("act", "cause"),
    [
        (kill_self(signal.SIGKILL), "a data worker was killed by the system (SIGKILL) {at}: most often because memory"),
        (kill_self(signal.SIGBUS), "a data worker crashed (SIGBUS) {at}, as happens when shared memory is full: /dev/"),
        (crash, "a data worker crashed (SIGSEGV) {at}"),
        (kill_self(signal.SIGABRT), "a data worker crashed (SIGABRT) {at}"),
        (kill_self(signal.SIGXCPU), "a data worker was ended by SIGXCPU {at}"),
        (lambda: os._exit(3), "a data worker ended with exit code 3 {at}"),
        (lambda: sys.exit(), "a data worker ended with exit code 0 {at}"),
    ],
    ids=["killed", "bus", "segfault", "abort", "limit", "exit", "sys_exit"],
)
def test_a_dead_worker_is_told_by_cause_image_and_batch(act: Callable[[], object], cause: str) -> None:
    loader = make_loader(Fatal(act), num_workers=3, shuffle=False)
    error, numbers, seconds = run_into(loader)
    assert isinstance(error, RunError) and seconds < 5
    assert str(error).startswith(cause.format(at="while it read or augmented 20.jpg for batch 6 of epoch 3"))
    assert ("data.num_workers" in error.remedy) == ("SIGXCPU" not in cause) and str(error).count(
        "\n  "
    ) == 1 + error.remedy.count("\n")
    assert numbers == list(range(len(numbers))) and len(numbers) <= 5  # none is skipped or repeated before it
    assert error.__suppress_context__ and error.__cause__ is None
    assert not children()  # the others have been ended


def test_after_a_death_the_loader_can_start_again(tmp_path: Path) -> None:
    died = tmp_path / "died"

    def die_once() -> None:
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    loader = make_loader(Fatal(die_once), RandomCrop(), num_workers=2, shuffle=False)
    run_into(loader)
    loader.close()  # as the trainer does, after a fault too
    again = list(loader.epoch(2, start_batch=97))
    loader.close()
    assert_equal_batches(again, list(make_loader(NoisySource(count=400), RandomCrop(), shuffle=False).epoch(2))[97:])


def test_the_main_process_is_not_interrupted_where_it_works() -> None:
    """torch raises from its signal handler, be it in the middle of an optimizer step."""
    loader = make_loader(NoisySource(count=400), num_workers=2, shuffle=False)
    batches = loader.epoch(0)
    assert next(batches).number == 0
    os.kill(min(children()), signal.SIGKILL)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:  # a step
        sum(range(1000))
    start = time.monotonic()
    with pytest.raises(DataWorkerError, match="SIGKILL"):
        list(batches)
    assert time.monotonic() - start < 2 and not children()


def test_a_death_between_epochs_is_found() -> None:
    loader = make_loader(NoisySource(), num_workers=2)
    assert len(list(loader.epoch(0))) == 5
    os.kill(max(children()), signal.SIGKILL)
    time.sleep(0.1)
    with pytest.raises(DataWorkerError, match=r"\(SIGKILL\): most often"):  # it was at no image
        next(loader.epoch(1))
    assert not children()


def test_workers_end_at_once_when_one_of_them_is_dead() -> None:
    loader = make_loader(NoisySource(), num_workers=3)
    next(loader.epoch(0))
    os.kill(min(children()), signal.SIGKILL)
    time.sleep(0.1)
    start = time.monotonic()
    loader.close()
    assert time.monotonic() - start < 2 and not children()
    assert len(list(loader.epoch(0))) == 5
    loader.close()


def test_workers_that_nobody_closes_end_with_their_loader() -> None:
    loader = make_loader(NoisySource(), num_workers=2)
    next(loader.epoch(0))
    start = time.monotonic()
    del loader
    gc.collect()
    assert time.monotonic() - start < 2 and not children()


def test_a_death_is_also_seen_outside_of_the_main_thread() -> None:
    """Where Python handles no signals."""
    caught: list[Exception] = []

    def train() -> None:
        try:
            list(make_loader(Fatal(kill_self(signal.SIGKILL)), num_workers=2, shuffle=False).epoch(0))
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=train)
    start = time.monotonic()
    thread.start()
    thread.join(30)
    assert time.monotonic() - start < 8
    assert isinstance(caught[0], DataWorkerError) and "SIGKILL" in str(caught[0]) and not children()


def test_the_kernels_count_of_kills_makes_it_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter((7, 9))
    monkeypatch.setattr(worker_pool, "count_out_of_memory_kills", lambda: next(counts))
    error, _, _ = run_into(make_loader(Fatal(kill_self(signal.SIGKILL)), num_workers=2, shuffle=False))
    assert error.cause.endswith("memory ran out (processes that the kernel killed for it since the workers started: 2)")


def test_counters_of_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 12\nodd\n")
    assert worker_faults._read_counters(tmp_path / "vmstat") == {"nr_free_pages": 5, "oom_kill": 12}
    assert worker_faults._read_counters(tmp_path / "none") == {}


def test_a_message_names_the_settings_as_they_are() -> None:
    text = str(explain_death(-signal.SIGKILL, "", SETTINGS, out_of_memory_kills=0))
    assert "data.num_workers (now 8;" in text and "data.prefetch_batches (now 2)" in text
    assert "data.batch_size (now 64)" in text and "data.max_image_pixels" in text
    assert "docker run --shm-size" in str(explain_death(-signal.SIGBUS, "", SETTINGS, out_of_memory_kills=0))
    assert "signal 99" in str(explain_death(-99, "", SETTINGS, out_of_memory_kills=0))


# ---------------------------------------------------------------- signals that are not for workers


def test_workers_outlive_a_sigterm_to_the_whole_job() -> None:
    """A batch system sends it to all processes; the main one wants to finish its step and to save."""
    loader = make_loader(NoisySource(count=400), num_workers=2, shuffle=False)
    batches = loader.epoch(0)
    next(batches)
    workers = children()
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    assert len(list(batches)) == 99 and children() == workers
    start = time.monotonic()
    loader.close()
    assert wait_until_gone(workers) and time.monotonic() - start < 2


def test_a_sigterm_while_workers_start_is_ignored_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def die_before(worker: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        worker_process.init_worker(worker)

    monkeypatch.setattr(worker_loader, "init_worker", die_before)
    loader = make_loader(NoisySource(), num_workers=2)
    assert len(list(loader.epoch(0))) == 5
    loader.close()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}


TERMINATED = """
    import signal, sys, time
    sys.path.insert(0, {folder!r})
    from made_images import NoisySource
    from test_batch_loader import RandomCrop, children, make_loader

    def stop(number, frame):
        raise SystemExit(143)

    class Slow(NoisySource):
        def read(self, index):
            time.sleep({delay})
            return super().read(index)

    signal.signal(signal.SIGTERM, stop)
    loader = make_loader(Slow(count=4000), RandomCrop(), num_workers=2, shuffle=False)
    for batch in loader.epoch(0):
        if batch.number == 1:
            print("children", *children(), flush=True)
"""


def test_sigterm_ends_the_main_process_and_its_workers_without_a_word(tmp_path: Path) -> None:
    process = start_script(tmp_path, TERMINATED, delay=0.02)
    assert process.stdout is not None
    workers = {int(word) for word in process.stdout.readline().split()[1:]}
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (143, "", "") and len(workers) == 2
    assert wait_until_gone(workers)


def test_a_worker_is_silent_where_the_main_process_goes_while_it_hands_out_a_batch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def print_in_thread(error: BaseException) -> str:
        print_it = worker_process._print_exception
        thread = threading.Thread(target=print_it, args=(type(error), error, error.__traceback__))
        thread.start()
        thread.join()
        return capsys.readouterr().err

    assert print_in_thread(ConnectionResetError(104, "Connection reset by peer")) == print_in_thread(EOFError()) == ""
    assert print_in_thread(KeyError("mine")) == "KeyError: 'mine'\n"
    worker_process._print_exception(EOFError, EOFError("in the dataset"), None)
    assert capsys.readouterr().err == "EOFError: in the dataset\n"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "main"])
def test_nothing_stays_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str) -> None:
    folder = tmp_path / "t"  # the path of a socket is at most 107 bytes long
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    process = start_script(tmp_path, TERMINATED, delay=0.02)
    assert process.stdout is not None
    workers = {int(word) for word in process.stdout.readline().split()[1:]}
    assert [path.name for path in folder.iterdir() if path.name.startswith("pymp-")]
    os.kill(min(workers) if victim == "worker" else process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert ("DataWorkerError" in errors) == (victim == "worker")
    assert wait_until_gone(workers) and not list(folder.iterdir())


def start_script(tmp_path: Path, script: str, *command: str, **values: object) -> subprocess.Popen[str]:
    path = tmp_path / "main.py"
    path.write_text(
        textwrap.dedent(script.format(folder=str(Path(__file__).resolve().parents[2] / "support"), **values))
    )
    return subprocess.Popen(
        [*command, sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )


# ---------------------------------------------------------------- batches that cannot be sent


@pytest.mark.parametrize(
    ("raised", "cause"),
    [
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"),
         "no shared memory for a batch: /dev/shm has"),
        (RuntimeError("unable to open shared memory object </torch_1_2_0> in read-write mode: Too many open files"),
         "too many open files: the limit of this process is"),
        (OSError(24, "Too many open files"), "too many open files: the limit of this process is"),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_fit_is_an_error_and_not_a_wait_for_ever(
    raised: Exception, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        @staticmethod
        def dumps(value: object) -> bytes:
            raise raised

    monkeypatch.setattr(worker_process, "ForkingPickler", Full)  # workers are forked
    loader = make_loader(NoisySource(), num_workers=2)
    error, numbers, seconds = run_into(loader)
    loader.close()
    assert str(error).startswith(cause) and "data.num_workers (now 2;" in error.remedy
    assert numbers == [] and seconds < 5 and not children()


FULL_SHARED_MEMORY = """
    import sys
    sys.path.insert(0, {folder!r})
    from made_images import NoisySource
    from test_batch_loader import children, make_dataset
    from cvtrain.data.loader.loader import BatchLoader
    from cvtrain.data.loader.sampler import EpochSampler
    from cvtrain.data.loader.worker_errors import DataWorkerError

    plan = EpochSampler(400, 8, seed=1, shuffle=False)
    loader = BatchLoader(dataset=make_dataset(NoisySource(count=400), image_size=256), plan=plan, num_workers=2)
    kept = []
    try:
        for batch in loader.epoch(0):
            kept.append(batch)
    except DataWorkerError as error:
        print(error.cause, len(kept), len(children()))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None or os.getuid() != 0, reason="mounts a small /dev/shm")
def test_a_full_dev_shm_is_named(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$0" "$@"'
    process = start_script(tmp_path, FULL_SHARED_MEMORY, "unshare", "-m", "sh", "-c", mount)
    output, errors = process.communicate(timeout=60)
    # Five batches of 8 x 3 x 256 x 256 bytes fill 8 MiB; some of them were on their way.
    assert output.startswith("no shared memory for a batch: /dev/shm has ") and " of 8 MB free" in output
    assert errors == "" and 1 <= int(output.split()[-2]) <= 5 and output.split()[-1] == "0"


@pytest.fixture
def few_open_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """At most 40 more files than are open now."""
    monkeypatch.setattr(worker_pool, "raise_open_file_limit", lambda: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = sorted(set(range(1000)) - set(open_files()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[40], hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files(process: int | str = "self") -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{process}/fd")]  # noqa: PTH208


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_too_many_open_files_are_named(few_open_files: None) -> None:
    loader = make_loader(NoisySource(count=400), num_workers=2, shuffle=False)
    kept = []
    with pytest.raises(DataWorkerError) as caught:
        for batch in loader.epoch(0):
            kept.append(batch)
    assert str(caught.value).startswith("too many open files: the limit of this process is")
    assert "ulimit -n" in caught.value.remedy and len(kept) > 10 and not children()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_labels_that_are_kept_hold_no_files_open() -> None:
    """Evaluation keeps the labels and indices of all batches."""
    loader = make_loader(NoisySource(count=400), num_workers=2, shuffle=False)
    kept = [(batch.labels, batch.indices) for batch in loader.epoch(0)]
    before = len(open_files())
    kept += [(batch.labels, batch.indices) for batch in loader.epoch(1)]
    assert len(kept) == 200 and len(open_files()) <= before + 2
    loader.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_batches_of_epochs_left_early_are_given_back() -> None:
    loader = make_loader(NoisySource(count=400), num_workers=2, shuffle=False)
    list(loader.epoch(0))
    workers = children()
    before = {pid: len(open_files(pid)) for pid in (*workers, os.getpid())}
    for epoch in range(12):  # each leaves about four batches behind
        assert next(loader.epoch(epoch)).number == 0
    list(loader.epoch(0))
    assert all(len(open_files(pid)) <= count + 3 for pid, count in before.items()) and children() == workers
    loader.close()


def test_the_limit_of_open_files_is_raised_as_far_as_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_other_errors_are_not_explained_away() -> None:
    assert explain_transport(ValueError("a bug"), SETTINGS) is None
    assert "could not be started" in str(explain_transport(OSError(12, "Cannot allocate memory"), SETTINGS))
    assert "connection to a data worker broke: ConnectionResetError" in str(
        explain_transport(ConnectionResetError(104, "Connection reset by peer"), SETTINGS)
    )


@pytest.mark.parametrize("num_started", [0, 1, 2])
def test_workers_that_cannot_all_start(num_started: int, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, launched = multiprocessing.popen_fork.Popen._launch, []  # type: ignore[attr-defined]

    def refuse(self: object, process: object) -> None:
        if len(launched) == num_started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        launched.append(process)
        launch(self, process)

    monkeypatch.setattr(multiprocessing.popen_fork.Popen, "_launch", refuse)  # type: ignore[attr-defined]
    error, _, seconds = run_into(make_loader(NoisySource(), num_workers=3))
    assert str(error).startswith("a data worker could not be started: [Errno 11] Resource temporarily unavailable")
    assert len(launched) == num_started and not children() and seconds < 5
    gc.collect()  # an exception in torch's own end would be one of this test


# ---------------------------------------------------------------- exceptions in a worker


class OwnError(Exception):
    """An exception as people write them: its arguments are not its message."""

    def __init__(self, row: int, *, column: str) -> None:
        self.row, self.column = row, column
        super().__init__(f"row {row}, column {column}")


def raise_own_error() -> None:
    raise OwnError(3, column="label")


def raise_config_error() -> None:
    raise ConfigError(key="data.kwargs.size", value=0, rule="must be positive", remedy="try 1")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_config_error_arrives_as_it_was(num_workers: int) -> None:
    with pytest.raises(ConfigError) as caught:
        list(make_loader(Fatal(raise_config_error), num_workers=num_workers, shuffle=False).epoch(0))
    assert str(caught.value) == "data.kwargs.size=0: must be positive\n  try 1"
    assert caught.value.problems[0].key == "data.kwargs.size"


def test_an_exception_keeps_type_arguments_and_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(make_loader(Fatal(lambda: 1 // 0), num_workers=1, shuffle=False).epoch(0))
    assert str(caught.value) == "integer division or modulo by zero"
    text = str(caught.value.__cause__)
    assert 'test_worker_errors.py", line' in text and "in read\n    self.act()" in text


def test_an_exception_that_cannot_travel_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match=r"^OwnError: row 3, column label$") as caught:
        list(make_loader(Fatal(raise_own_error), num_workers=1, shuffle=False).epoch(0))
    assert "in raise_own_error" in str(caught.value.__cause__)


def test_too_many_files_opened_by_a_dataset_are_its_own_error() -> None:
    def leak() -> None:
        raise OSError(24, "Too many open files", "a.jpg")

    with pytest.raises(OSError, match=r"a\.jpg") as caught:
        list(make_loader(Fatal(leak), num_workers=1, shuffle=False).epoch(0))
    assert "in leak" in str(caught.value.__cause__)


def test_more_workers_than_cores_are_no_warning() -> None:
    count = 2 * (os.cpu_count() or 1) + 1
    loader = make_loader(NoisySource(count=4 * count), num_workers=count)  # warnings are errors here
    assert len(list(loader.epoch(0))) == loader.num_workers == count
    loader.close()


# ---------------------------------------------------------------- page-locked memory


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_death_while_batches_are_pinned() -> None:
    loader = make_loader(Fatal(kill_self(signal.SIGKILL)), num_workers=3, shuffle=False, pin_memory=True)
    error, _, seconds = run_into(loader)
    assert "20.jpg for batch 6" in str(error) and seconds < 5 and not children()
    assert not [thread for thread in threading.enumerate() if "pin_memory" in thread.name]


def test_a_parcel_holds_what_a_batch_holds() -> None:
    batch = Batch(torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2), torch.tensor([4, 2]), torch.tensor([0, 9]),
                  epoch=3, number=7)  # fmt: skip
    opened = worker_process.Parcel(batch).open()
    assert_equal_batches([opened], [batch])
    assert opened.images.is_synced() and not opened.labels.is_synced()
