"""Drawing beside the training: it waits for its time, is there at the end, and stops nobody."""

import threading

from cvtrain.report.background import BackgroundDrawing


def test_it_begins_when_it_may():
    drawn, may_begin = threading.Event(), threading.Event()
    drawing = BackgroundDrawing(drawn.set, may_begin=may_begin.is_set)
    assert not drawn.wait(0.3)
    may_begin.set()
    assert drawn.wait(10)
    drawing.finish()


def test_the_end_does_not_wait_for_the_beginning():
    drawn = []
    drawing = BackgroundDrawing(lambda: drawn.append(1), may_begin=lambda: False)
    drawing.finish()
    drawing.finish()
    assert drawn == [1]


def test_a_picture_that_fails_is_a_warning(caplog):
    def fail():
        raise OSError(28, "No space left on device")

    BackgroundDrawing(fail, may_begin=lambda: True).finish()
    assert "a picture could not be drawn: OSError: [Errno 28] No space left on device" in caplog.text
