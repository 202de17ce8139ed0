"""The ranks other than 0: they run the job that rank 0 has composed and checked, in its folder."""

import logging
import os
import sys
import warnings
from pathlib import Path

from cvtrain.config.serialize import from_plain
from cvtrain.distributed.rendezvous import DistributedRendezvous
from cvtrain.runtime.console import ConsoleHandler, DisplayFormatter, log_exception_to_file

# Loggers of what may concern one rank only.
RANK_LOCAL_LOGGERS = ("cvtrain.data", "py.warnings")


def run_rank(rendezvous: DistributedRendezvous) -> int:
    """Wait for the job of rank 0, run this rank of it and return the exit status.

    Raises:
        SystemExit: a signal has ended the run.
    """
    job = rendezvous.wait_for_job()
    if "exit_code" in job:
        return job["exit_code"]
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    config = from_plain(job["config"], job["schemas"])
    run_dir = Path(job["run_dir"])
    configure_rank_logging(rendezvous.rank.rank, run_dir / job["log_file"], config.log_level)
    from cvtrain.commands.train import train

    try:
        result = train(config, run_dir=run_dir, world=rendezvous.start(job))
    except Exception as error:
        if rendezvous.should_report(error):
            log_exception_to_file(error)
        raise
    if result.exit_code:
        raise SystemExit(result.exit_code)
    return 0


def configure_rank_logging(rank: int, path: Path, level: str) -> None:
    """Log errors, and warnings that concern this rank alone, to the console and the run's log, with its number.

    With log_level=DEBUG everything is logged.
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
            handler.addFilter(is_rank_local)
        root.addHandler(handler)
    if not sys.warnoptions:  # rank 0 shows them
        warnings.simplefilter("ignore")


def is_rank_local(record: logging.LogRecord) -> bool:
    """Return False for records that rank 0 logs as well."""
    return record.levelno >= logging.ERROR or (
        record.levelno >= logging.WARNING and record.name.startswith(RANK_LOCAL_LOGGERS)
    )
