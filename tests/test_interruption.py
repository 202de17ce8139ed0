"""interruption: the first signal is a wish, the second one interrupts."""

import os
import signal
import threading

import pytest

from cvtrain.interruption import StopSignal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_is_noted_second_interrupts(number, code):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.received is number
        assert stop.exit_code == code
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_it_does_nothing():
    seen = []

    def enter():
        with StopSignal() as stop:
            seen.append(stop.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None]
