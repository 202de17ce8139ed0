"""The open door: what `import_object` finds, and what it says when it does not."""

import sys
import traceback

import pytest

from cvtrain.config.errors import ConfigError
from cvtrain.config.imports import import_object


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder whose modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_finds_class_and_attribute_in_the_working_folder(folder):
    (folder / "birds_pkg").mkdir()
    (folder / "birds_pkg" / "nets.py").write_text("class Net:\n    def small(): return 7\n")
    assert import_object("birds_pkg.nets.Net", "model.target").__name__ == "Net"
    assert import_object("birds_pkg.nets.Net.small", "model.target")() == 7


def test_finds_what_is_installed():
    import collections.abc

    assert import_object("collections.abc.Mapping", "x") is collections.abc.Mapping


@pytest.mark.parametrize(
    ("path", "rule", "remedy"),
    [
        ("Net", "must be an import path with a dot", ""),
        ("a..b", "must be an import path with a dot", ""),
        ("a b.c", "must be an import path with a dot", ""),
        ("no_such_module.Net", "no module no_such_module in the working folder", "start from the folder"),
        ("collections.OrderdDict", "collections has no OrderdDict", "did you mean collections.OrderedDict?"),
        ("collections.OrderedDict.nope", "collections.OrderedDict has no nope", ""),
        ("collections.nope.Net", "collections has no nope", ""),
    ],
)
def test_says_what_is_missing(folder, path, rule, remedy):
    with pytest.raises(ConfigError) as caught:
        import_object(path, "model.target")
    (problem,) = caught.value.problems
    assert (problem.key, problem.value) == ("model.target", path)
    assert problem.rule.startswith(rule) and problem.remedy.startswith(remedy)


def test_names_the_package_that_the_module_lacks(folder):
    (folder / "needy.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ConfigError, match="needy cannot be imported: it imports not_installed_anywhere") as caught:
        import_object("needy.Net", "model.target")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_bug_in_the_module_keeps_its_traceback(folder):
    (folder / "buggy.py").write_text("x = 1\ny = x / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        import_object("buggy.Net", "model.target")
    assert traceback.extract_tb(caught.tb)[-1].line == "y = x / 0"
