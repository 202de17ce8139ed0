"""The console that log lines and the progress bar share."""

import io
import logging

import pytest

from cvtrain.console import ConsoleHandler, get_console


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
