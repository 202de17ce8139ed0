"""Settings of `cvtrain report`."""

from dataclasses import dataclass
from enum import Enum
from typing import List, Optional

from cvtrain.config.schema.fields import required, setting
from cvtrain.config.schema.predict import LOG_LEVELS


class ReportSplit(str, Enum):
    val = "val"
    test = "test"
    train = "train"
    all = "all"


@dataclass
class ReportConfig:
    """`cvtrain report RUN [RUN...]`: a page about a run, or about several side by side."""

    runs: List[str] = required("run folders, or folders of cvtrain evaluate; written without runs= as plain words")
    output: Optional[str] = setting(
        None, "page to write; null: report.html in the run's folder, of several runs comparison.html in this one"
    )
    split: Optional[ReportSplit] = setting(
        None, "whose predictions: val, test, train or all; null: val, or the one that there is"
    )
    check: Optional[str] = setting(
        None,
        "folder that cvtrain check wrote about the same set, whose findings stand beside the mistakes; null: the run's "
        "own, if it has a findings.csv",
    )
    log_level: str = setting("INFO", "level of the console", choices=LOG_LEVELS)
