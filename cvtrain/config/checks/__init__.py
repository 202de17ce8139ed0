"""Rules between settings: combinations that cannot work, files that are not there, settings without effect.

Each rule is a small generator of `Problem`s. A setting without effect is a problem only if the user set it
(`is_set(key)`): the values that a chosen option brings along are nobody's mistake.
"""

from collections.abc import Callable, Iterable
from typing import Any

from cvtrain.config.checks.augment import AUGMENT_CHECKS
from cvtrain.config.checks.auto import AUTO_CHECKS
from cvtrain.config.checks.check import CHECK_CHECKS
from cvtrain.config.checks.data import DATA_CHECKS
from cvtrain.config.checks.data_files import DATA_FILE_CHECKS
from cvtrain.config.checks.export import EXPORT_CHECKS
from cvtrain.config.checks.extras import EXTRA_CHECKS
from cvtrain.config.checks.features import FEATURE_CHECKS
from cvtrain.config.checks.model import MODEL_CHECKS
from cvtrain.config.checks.predict import MERGE_CHECKS, PREDICT_CHECKS
from cvtrain.config.checks.report import REPORT_CHECKS
from cvtrain.config.checks.reproduce import REPRODUCE_CHECKS
from cvtrain.config.checks.run import EVALUATE_CHECKS, RUN_CHECKS
from cvtrain.config.checks.schedule import SCHEDULE_CHECKS
from cvtrain.config.checks.serve import SERVE_CHECKS
from cvtrain.config.checks.sweep import SWEEP_CHECKS
from cvtrain.config.checks.training import TRAINING_CHECKS
from cvtrain.config.errors import Problem
from cvtrain.config.schema.auto import AutoConfig
from cvtrain.config.schema.check import CheckConfig
from cvtrain.config.schema.export import ExportConfig
from cvtrain.config.schema.predict import MergeConfig, PredictConfig
from cvtrain.config.schema.report import ReportConfig
from cvtrain.config.schema.reproduce import ReproduceConfig
from cvtrain.config.schema.root import CacheConfig, Config, EvaluateConfig
from cvtrain.config.schema.serve import ServeConfig
from cvtrain.config.schema.sweep import SweepConfig

Check = Callable[..., Iterable[Problem]]

CHECKS: dict[type, tuple[Check, ...]] = {
    Config: (
        *RUN_CHECKS,
        *EXTRA_CHECKS,
        *DATA_CHECKS,
        *DATA_FILE_CHECKS,
        *AUGMENT_CHECKS,
        *MODEL_CHECKS,
        *FEATURE_CHECKS,
        *TRAINING_CHECKS,
        *SCHEDULE_CHECKS,
    ),
    EvaluateConfig: EVALUATE_CHECKS,
    CheckConfig: CHECK_CHECKS,
    PredictConfig: PREDICT_CHECKS,
    MergeConfig: MERGE_CHECKS,
    ReportConfig: REPORT_CHECKS,
    ReproduceConfig: REPRODUCE_CHECKS,
    ExportConfig: EXPORT_CHECKS,
    ServeConfig: SERVE_CHECKS,
    CacheConfig: (),
    SweepConfig: SWEEP_CHECKS,
    AutoConfig: AUTO_CHECKS,
}


def find_conflicts(
    config: Any,
    is_set: Callable[[str], bool],
) -> list[Problem]:
    """Every problem between the settings of a typed config.

    Args:
        config: the config of a verb, whose fields keep their own rules.
        is_set: tells whether the user set a key, rather than a default.
    """
    return [problem for check in CHECKS[type(config)] for problem in check(config, is_set)]
