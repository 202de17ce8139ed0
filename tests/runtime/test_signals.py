"""interruption: under `deferred` the first signal is a wish; elsewhere, and the second time, it is an order."""

import os
import signal
import threading
import time

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
