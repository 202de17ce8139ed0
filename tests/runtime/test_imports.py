"""garbage: the collector stays out of imports, and is back behind them."""

import gc
import sys
import types

import pytest

from cvtrain.runtime.imports import importing


@pytest.fixture(autouse=True)
def thawed():
    """Leave the test process as it was, with nothing kept from collection."""
    yield
    gc.unfreeze()
    gc.enable()


def test_modules_that_came_are_never_looked_through_again(monkeypatch):
    with importing():
        assert not gc.isenabled()
        monkeypatch.setitem(sys.modules, "a_new_module", types.ModuleType("a_new_module"))
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_garbage_of_a_second_run_in_the_process_is_still_found():
    before = gc.get_freeze_count()
    with importing():
        import json  # noqa: F401 (there already)
    assert gc.get_freeze_count() == before


def test_a_failed_import_leaves_the_collector_on():
    with pytest.raises(ImportError), importing():
        import no_such_module_at_all  # noqa: F401
    assert gc.isenabled()


def test_who_has_switched_it_off_keeps_it_off():
    gc.disable()
    with importing():
        pass
    assert not gc.isenabled()
