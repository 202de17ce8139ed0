"""The processes of a run other than rank 0: they run what rank 0 has composed and checked, in its folder."""

import logging
import os
import sys
import warnings
from pathlib import Path

from cvtrain.config.serialize import from_plain
from cvtrain.distributed.rendezvous import SharedSession
from cvtrain.runtime.console import ConsoleHandler, DisplayFormatter, log_exception_to_file

# Where a process may meet something that the others do not.
RANK_LOCAL_LOGGERS = ("cvtrain.data", "py.warnings")


def join(session: SharedSession) -> int:
    """Wait for rank 0's decision and take part in it; returns the exit status.

    Raises:
        SystemExit: a signal has ended the run.
    """
    plan = session.wait_for_job()
    if "exit_code" in plan:
        return plan["exit_code"]
    os.environ.update(plan["environment"])
    os.chdir(plan["folder"])
    config = from_plain(plan["config"], plan["schemas"])
    run_dir = Path(plan["run_dir"])
    configure_rank_logging(session.rank.rank, run_dir / plan["log_file"], config.log_level)
    from cvtrain.commands.train import train

    try:
        result = train(config, run_dir=run_dir, world=session.start(plan))
    except Exception as error:
        if session.tells(error):
            log_exception_to_file(error)
        raise
    if result.exit_code:
        raise SystemExit(result.exit_code)
    return 0


def configure_rank_logging(rank: int, path: Path, level: str) -> None:
    """Errors, and warnings of what concerns this process alone, go to the console and the run's log, with its number.

    With log_level=DEBUG all goes there.
    """
    root = logging.getLogger()
    root.setLevel(level)
    handlers: list[tuple[logging.Handler, str]] = [
        (ConsoleHandler(), f"[rank {rank}] %(message)s"),
        (
            logging.FileHandler(path, encoding="utf-8", delay=True),
            f"%(asctime)s %(levelname)s %(name)s: [rank {rank}] %(message)s",
        ),
    ]
    for handler, text in handlers:
        handler.setFormatter(DisplayFormatter(text, with_details=isinstance(handler, logging.FileHandler)))
        if level != "DEBUG":
            handler.addFilter(is_own_concern)
        root.addHandler(handler)
    if not sys.warnoptions:  # rank 0 shows them
        warnings.simplefilter("ignore")


def is_own_concern(record: logging.LogRecord) -> bool:
    """False for what rank 0 says as well."""
    return record.levelno >= logging.ERROR or (
        record.levelno >= logging.WARNING and record.name.startswith(RANK_LOCAL_LOGGERS)
    )
