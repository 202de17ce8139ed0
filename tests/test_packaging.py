"""cvtrain from a checkout, and from a wheel in an empty folder: the same config either way."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cvtrain

ROOT = Path(__file__).resolve().parents[1]
CONFIG_FILES = sorted(str(file.relative_to(ROOT / "conf")) for file in (ROOT / "conf").rglob("*.yaml"))
SOURCE_FILES = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "cvtrain").rglob("*.py"))


def run(folder, path, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "cvtrain", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_every_package_is_listed():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {str(Path(file).parent).replace(os.sep, ".") for file in SOURCE_FILES}
    assert set(project["tool"]["setuptools"]["packages"]) == packages | {"cvtrain.conf"}


def test_console_script_is_the_modules_main():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"cvtrain": "cvtrain.__main__:main"}


def test_uninstalled_checkout_runs_from_its_own_folder(tmp_path):
    # Copied, and found by the working folder alone, as `python -m cvtrain` in a fresh clone.
    shutil.copytree(ROOT / "cvtrain", tmp_path / "cvtrain", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    code = (
        "import sys, runpy; sys.path.insert(0, ''); sys.argv = ['cvtrain', '--info', 'searchpath'];"
        "runpy.run_module('cvtrain', run_name='__main__', alter_sys=True)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert f"file://{tmp_path.resolve()}/conf" in result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built by setuptools from a copy of what the repository holds; nothing is downloaded."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    for name in ("cvtrain", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return source / "dist" / result.stdout.splitlines()[-1]


def test_wheel_holds_every_file(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name == f"cvtrain-{cvtrain.__version__}-py3-none-any.whl"
    assert sorted(name for name in names if name.endswith(".py")) == SOURCE_FILES
    assert sorted(name.removeprefix("cvtrain/conf/") for name in names if name.endswith(".yaml")) == CONFIG_FILES
    assert "cvtrain/py.typed" in names


def test_wheel_composes_in_an_empty_folder(wheel, tmp_path):
    installed, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(installed)
    result = run(empty, installed, "--cfg", "job", "model=resnet18")
    assert result.returncode == 0, result.stderr
    assert result.stdout == run(empty, ROOT, "--cfg", "job", "model=resnet18").stdout
    paths = run(empty, installed, "--info", "searchpath").stdout
    assert f"file://{installed.resolve()}/cvtrain/conf" in paths
    wrong = run(empty, installed, "optimzer.lr=1")
    assert wrong.returncode == 2 and "did you mean optimizer.lr?" in wrong.stderr
    assert list(empty.iterdir()) == []
