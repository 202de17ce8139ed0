"""The garbage collector rests inside, and is as it was afterwards."""

import gc

import pytest

from cvtrain.runtime.collection import collection_paused


def test_the_collector_is_as_it_was_also_after_an_error():
    assert gc.isenabled()
    with pytest.raises(ValueError, match="inside"), collection_paused():
        assert not gc.isenabled()
        raise ValueError("inside")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
