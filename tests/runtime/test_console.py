"""The console that log lines and the progress bar share."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvtrain.runtime.console import ConsoleHandler, get_console


@pytest.fixture
def logger():
    logger = logging.getLogger("test_console")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = ConsoleHandler()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def test_console_is_one():
    assert get_console() is get_console()


def test_lines_stay_whole_and_plain_without_a_terminal(logger, capsys):
    line = "x" * 500 + " [bold]no markup[/bold] :smile: 3.14 [1, 2]"
    logger.warning(line)
    assert capsys.readouterr().out == f"{line}\n"


def test_line_during_a_live_display_stands_above_it(logger, monkeypatch):
    from rich.live import Live

    output = io.StringIO()
    monkeypatch.setattr(get_console(), "_file", output)  # its setter could not be undone: it would pin stdout
    with Live("bar", console=get_console(), auto_refresh=False):
        logger.info("line")
    assert output.getvalue().splitlines()[0] == "line"


def test_a_run_goes_on_when_nobody_reads_its_output(tmp_path):
    """As with `cvtrain | head -1`: rich ended the process at the next line, with status 1 and without a word."""
    command = [sys.executable, "-m", "cvtrain", "trainer.epochs=2", "plots=false", "hydra.run.dir=run"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(120) == 0
    lines = (tmp_path / "run" / "train.log").read_text()
    assert lines.count("the output is closed") == 1
    assert "done: all epochs done" in lines
