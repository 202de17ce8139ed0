"""interruption: under `deferred` the first signal is a wish; elsewhere, and the second time, it is an order."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cvtrain.runtime import signals as interruption
from cvtrain.runtime.signals import StopSignals

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)]
LIMIT_CODES = [(signal.SIGHUP, 129), (signal.SIGXCPU, 152)]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_first_signal_is_noted_second_interrupts(number, code, monkeypatch):
    monkeypatch.setattr(interruption, "SECONDS_TOGETHER", 0.0)
    before = signal.getsignal(number)
    with StopSignals() as stop, stop.deferred():
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.received is number
        assert stop.exit_code == code
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "code"), LIMIT_CODES)
@pytest.mark.parametrize("first", [None, signal.SIGTERM])
def test_hangup_and_cpu_limit_are_never_an_order(number, code, first, monkeypatch):
    monkeypatch.setattr(interruption, "SECONDS_TOGETHER", 0.0)
    with StopSignals() as stop, stop.deferred():
        if first is not None:
            os.kill(os.getpid(), first)
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.received is number
        assert stop.exit_code == code


@pytest.mark.parametrize(("number", "code"), LIMIT_CODES)
def test_ignored_hangup_stays_ignored(number, code):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignals() as stop, stop.deferred():
            os.kill(os.getpid(), number)
            assert stop.received is None
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(("number", "code"), CODES + LIMIT_CODES)
def test_where_nobody_looks_for_it_a_signal_ends_the_process(number, code):
    with StopSignals() as stop:
        if number is signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        else:
            with pytest.raises(SystemExit) as caught:
                os.kill(os.getpid(), number)
            assert caught.value.code == code
        assert stop.exit_code == code


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_what_a_batch_system_sends_beside_sigterm_is_no_order(number, monkeypatch):
    monkeypatch.setattr(interruption, "SECONDS_TOGETHER", 0.0)
    with StopSignals() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), number)
        assert stop.received is number
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_sigterm_that_a_parent_passes_on_is_the_same_one():
    with StopSignals() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM
        stop._received_at -= interruption.SECONDS_TOGETHER
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def handed_on():
    """The signals that come to a handler which was there before, as submitit's is."""
    seen = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: seen.append(signal.Signals(number)))
    yield seen
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


def test_sigusr2_is_handed_on_when_the_run_is_saved(handed_on):
    with StopSignals() as stop:
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGUSR2)
        assert handed_on == []
    assert handed_on == [signal.SIGUSR2]


def test_sigusr2_as_an_order_is_handed_on_too(handed_on):
    with pytest.raises(SystemExit), StopSignals():
        os.kill(os.getpid(), signal.SIGUSR2)
    assert handed_on == [signal.SIGUSR2]


def test_sigterm_stays_with_the_run(handed_on):
    with StopSignals() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
    assert handed_on == []


def test_outside_the_main_thread_it_does_nothing():
    seen = []

    def enter():
        with StopSignals() as stop, stop.deferred():
            seen.append(stop.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_what_is_not_worth_a_wait_is_cut_short_after_a_signal(number, code):
    with StopSignals() as stop:
        with stop.deferred():
            os.kill(os.getpid(), number)
        started = time.monotonic()
        with pytest.raises((KeyboardInterrupt, SystemExit)), stop.with_deadline(0.1):
            threading.Event().wait(30)
        assert 0.1 <= time.monotonic() - started < 5
        assert stop.exit_code == code


def test_without_a_signal_nothing_is_cut_short():
    with StopSignals() as stop:
        with stop.with_deadline(0.05):
            time.sleep(0.15)
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        with stop.with_deadline(0.2):  # done before its time is over
            pass
        time.sleep(0.4)


def test_the_interpreters_end_is_waited_for_only_so_long():
    code = (
        "import sys; from cvtrain.runtime.signals import PromptExit, is_signal_exit; leaving = PromptExit(1.0)\n"
        "import atexit, subprocess, threading, time\n"
        "atexit.register(lambda: print('never said', flush=True))\n"
        "child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL); print(child.pid)\n"
        "print(is_signal_exit(143), is_signal_exit(1))\n"
        "atexit.register(child.wait)\n"
        "atexit.register(lambda: print('said'))\n"
        "threading.Thread(target=lambda: (time.sleep(0.5), print('saved'))).start()\n"
        "leaving.begin(143); sys.exit(143)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    child, *said = done.stdout.split()
    assert (done.returncode, said) == (143, ["True", "False", "saved", "said"])
    assert not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z"


def test_who_is_done_has_everything_said_and_nothing_torn_down():
    code = (
        "import sys; from cvtrain.runtime.signals import PromptExit; leaving = PromptExit(0.1)\n"
        "import atexit, threading, time\n"
        "class Late:\n    def __del__(self): print('torn down')\n"
        "late = Late()\n"
        "atexit.register(lambda: (time.sleep(0.5), print('said')))\n"
        "threading.Thread(target=lambda: (time.sleep(0.5), print('saved'))).start()\n"
        "leaving.end(1); sys.exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.split(), done.stderr) == (1, ["saved", "said"], "")


def test_who_came_first_keeps_the_last_word():
    code = (
        "import atexit, sys; atexit.register(lambda: print('measured'))\n"
        "from cvtrain.runtime.signals import PromptExit; leaving = PromptExit(0.1)\n"
        "leaving.end(1); sys.exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.split(), done.stderr) == (1, ["measured"], "")


def test_what_is_open_is_flushed(tmp_path):
    code = (
        "import sys; from cvtrain.runtime.signals import PromptExit; leaving = PromptExit(0.1)\n"
        f"text = open({str(tmp_path / 'text')!r}, 'w'); text.write('kept')\n"
        f"raw = open({str(tmp_path / 'raw')!r}, 'wb'); raw.write(b'kept')\n"
        "closed = open('/dev/null', 'w'); closed.close()\n"
        "leaving.end(0); sys.exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "text").read_text() == (tmp_path / "raw").read_text() == "kept"
