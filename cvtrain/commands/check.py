"""The verb `check`: what is wrong with a data set, in tables and on a page."""

import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvtrain.check.classes import class_findings
from cvtrain.check.copies import copy_findings, find_copies
from cvtrain.check.files import file_findings
from cvtrain.check.findings import (
    Finding,
    Severity,
    by_check,
    describe,
    quarantine,
    write_findings,
    write_quarantine,
)
from cvtrain.check.labels import label_findings
from cvtrain.check.measure import CheckedImages, Measurements, measure_images
from cvtrain.check.page import render_page
from cvtrain.check.pictures import picture_findings
from cvtrain.check.shortcuts import shortcut_findings
from cvtrain.commands.check_features import compute_image_features
from cvtrain.config.errors import RunError
from cvtrain.config.machine import usable_cores
from cvtrain.config.schema.check import CheckConfig, has_weights
from cvtrain.config.schema.data import DataConfig, FileDataConfig, OwnFilesConfig
from cvtrain.config.text import display_message
from cvtrain.data.loader.num_workers import choose_num_workers
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.source import FileSource, Splits
from cvtrain.report.json_file import write_json
from cvtrain.runtime.console import display_path
from cvtrain.runtime.files import atomic_write
from cvtrain.runtime.progress import build_progress

log = logging.getLogger(__name__)

# Examples of each check that the console shows.
EXAMPLES = 3


@dataclass(frozen=True)
class CheckResult:
    """What `check` gives back.

    Attributes:
        images: the images of all splits by one index, which the findings use.
        findings: by check, in the order in which they are shown.
        quarantined: images that had better be left out, with the reason.
        run_dir: folder of the tables and the page.
    """

    images: CheckedImages
    findings: dict[str, list[Finding]]
    quarantined: dict[int, str]
    run_dir: Path

    @property
    def num_errors(self) -> int:
        """Findings that make figures wrong."""
        return sum(len(found) for found in self.findings.values() if found[0].kind.severity is Severity.error)


def check(config: CheckConfig, *, run_dir: Path, overrides: Sequence[str] = ()) -> CheckResult:
    """Look at every image of `config.data` once, and write what was found into `run_dir`.

    Args:
        overrides: the command's words, which the advice repeats.

    Raises:
        ConfigError: there are no images, or labels are missing or contradict each other.
        RunError: the results cannot be written.
    """
    started = time.perf_counter()
    splits = build_splits(config.data, min_classes=1, allow_untrained=True)
    images = CheckedImages(splits)
    for line in splits.left_out:
        log.info("data: %s", line)
    counts = ", ".join(f"{len(source):,} {split}" for split, source in splits.parts().items())
    log.info("data: %s: %s images, %s", config.data.name, counts, _classes(len(images.classes)))
    measured = _measure(config.data, images)
    findings = _find(images, splits, measured)
    if has_weights(config):
        findings += label_findings(images, *compute_image_features(config, images, build_progress(True)))
    groups = by_check(findings)
    result = CheckResult(images, groups, quarantine(images, groups), run_dir)
    try:
        _write(config, result, measured, overrides)
    except OSError as error:
        raise RunError(f"{error.filename or run_dir} could not be written: {error.strerror or error}") from error
    for line in _report(config, result, overrides):
        log.info("%s", line)
    log.info("%s images in %.1f s", f"{len(images):,}", time.perf_counter() - started)
    return result


def _measure(config: DataConfig, images: CheckedImages) -> Measurements:
    workers = config.num_workers
    if not isinstance(workers, int):
        workers = choose_num_workers(
            is_in_memory=not all(isinstance(source, FileSource) for source in images.sources),
            num_images=len(images),
            num_batches=len(images),
            num_cores=usable_cores(),
            on_cpu=False,
        ).num_workers
    progress = build_progress(True)
    progress.start("looking at images", len(images))
    try:
        return measure_images(images, num_workers=workers, on_images=progress.advance)
    finally:
        progress.close()


def _find(images: CheckedImages, splits: Splits, measured: Measurements) -> list[Finding]:
    return [
        *file_findings(images, measured),
        *copy_findings(images, find_copies(images, measured)),
        *picture_findings(images, measured),
        *shortcut_findings(images, measured),
        *class_findings(images, splits),
    ]


# ---------------------------------------------------------------- results


def _write(config: CheckConfig, result: CheckResult, measured: Measurements, overrides: Sequence[str]) -> None:
    images, groups, run_dir = result.images, result.findings, result.run_dir
    write_findings(run_dir / "findings.csv", images, groups)
    write_quarantine(run_dir / "quarantine.csv", images, result.quarantined)
    write_json(run_dir / "check.json", _summary(config, result, measured))
    page = render_page(
        images,
        groups,
        title=_title(config.data),
        summary=_page_summary(result),
        advice=_next_command(config.data, result, overrides),
    )
    with atomic_write(run_dir / "check.html") as file:
        file.write(page)


def _summary(config: CheckConfig, result: CheckResult, measured: Measurements) -> dict[str, object]:
    images = result.images
    return {
        "data": _title(config.data),
        "images": {split: len(source) for split, source in zip(images.splits, images.sources, strict=True)},
        "classes": len(images.classes),
        "unreadable": len(measured.errors),
        "findings": {
            name: {"severity": found[0].kind.severity, "count": len(found)} for name, found in result.findings.items()
        },
        "errors": result.num_errors,
        "quarantined": len(result.quarantined),
    }


def _title(config: DataConfig) -> str:
    place = getattr(config, "file", "") or (config.root if isinstance(config, FileDataConfig) else "")
    return f"{config.name} {place}".strip()


def _classes(count: int) -> str:
    return f"{count:,} {'class' if count == 1 else 'classes'}"


def _page_summary(result: CheckResult) -> list[str]:
    images = result.images
    counts = ", ".join(
        f"{len(source):,} in {split}" for split, source in zip(images.splits, images.sources, strict=True)
    )
    lines = [f"{len(images):,} images of {_classes(len(images.classes))}: {counts}."]
    if result.num_errors:
        lines.append(f"{result.num_errors:,} findings make figures wrong.")
    if result.quarantined:
        lines.append(f"quarantine.csv lists {len(result.quarantined):,} images that had better be left out.")
    return lines


def _report(config: CheckConfig, result: CheckResult, overrides: Sequence[str]) -> list[str]:
    """Return the lines for the console: a table by check with the first examples, and what to type next."""
    lines = ["nothing was found"] if not result.findings else []
    width = max((len(name) for name in result.findings), default=0)
    for name, found in result.findings.items():
        kind = found[0].kind
        lines.append(f"{kind.severity.value:<8}{len(found):>7,}  {name:<{width}}  {kind.title}")
        lines += [f"{'':17}{display_message(describe(result.images, each))}" for each in found[:EXAMPLES]]
        if len(found) > EXAMPLES:
            lines.append(f"{'':17}and {len(found) - EXAMPLES:,} more")
    lines.append(f"page: {display_path(result.run_dir / 'check.html')}; rows: findings.csv, beside it")
    if command := _next_command(config.data, result, overrides):
        lines.append(f"without {len(result.quarantined):,} of the images: {command}")
    return lines


def _next_command(config: DataConfig, result: CheckResult, overrides: Sequence[str]) -> str:
    """Return the command that trains without the images of quarantine.csv; nothing if it would change nothing."""
    if not result.quarantined or not isinstance(config, OwnFilesConfig) or config.exclude is not None:
        return ""
    words = [word for word in overrides if word.partition("=")[0].startswith("data")]
    if not words:  # called from Python
        return ""
    exclude = f"data.exclude={display_path(result.run_dir / 'quarantine.csv')}"
    return shlex.join(["cvtrain", *words, exclude])
