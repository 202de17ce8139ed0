"""interruption: under `deferred` the first signal is a wish; elsewhere, and the second time, it is an order."""

import os
import signal
import threading

import pytest

from cvtrain.interruption import StopSignal

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_first_signal_is_noted_second_interrupts(number, code):
    before = signal.getsignal(number)
    with StopSignal() as stop, stop.deferred():
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.received is number
        assert stop.exit_code == code
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "code"), CODES)
def test_where_nobody_looks_for_it_a_signal_ends_the_process(number, code):
    with StopSignal() as stop:
        if number is signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        else:
            with pytest.raises(SystemExit) as caught:
                os.kill(os.getpid(), number)
            assert caught.value.code == code
        assert stop.exit_code == code


def test_outside_the_main_thread_it_does_nothing():
    seen = []

    def enter():
        with StopSignal() as stop, stop.deferred():
            seen.append(stop.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None]
