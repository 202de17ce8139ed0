"""`report.html` of one run: what its figures are worth, on one page that can be sent to a colleague."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from cvtrain.config.changed_settings import changed_settings
from cvtrain.config.errors import format_value
from cvtrain.config.redact import redact
from cvtrain.data.sources.source import ImageSource
from cvtrain.report import chart, run_sections
from cvtrain.report.pictures import MAX_THUMBNAIL_BYTES, Pictures
from cvtrain.report.run_facts import RunFacts, compute_facts, measured_rows, share_with_interval
from cvtrain.report.run_results import RunResults, has_best, read_findings
from cvtrain.report.run_sections import percent, table, with_range
from cvtrain.runtime.files import atomic_write
from cvtrain.runtime.html_page import render_page, text

REPORT = "report.html"
GENERATOR = "cvtrain report"
STYLE = chart.STYLE + run_sections.STYLE
_MAX_SETTINGS = 100
_MAX_VALUE = 200


def write_run_page(path: Path, results: RunResults, images: ImageSource | str, *, check: Path | None = None) -> None:
    """Write the page of one run, atomically.

    Args:
        images: of the split, or why there are none.
        check: folder of a `cvtrain check` of the same set; None: the run's own, if it has a findings.csv.

    Raises:
        ConfigError: findings.csv is damaged.
        OSError: the disk is full or the folder cannot be written; an old page is untouched.
    """
    body = run_body(results, compute_facts(results), images, check=check)
    page = render_page(results.title, body, generator=GENERATOR, style=STYLE)
    with atomic_write(path) as file:
        file.write(page)


def run_body(
    results: RunResults,
    facts: RunFacts,
    images: ImageSource | str,
    *,
    check: Path | None = None,
    max_bytes: int = MAX_THUMBNAIL_BYTES,
) -> Iterator[str]:
    """Yield the HTML of one run, the most useful first.

    Args:
        images: of the split, or why there are none.
        max_bytes: that thumbnails take together.
    """
    source = None if isinstance(images, str) else images
    shown = {results.paths[row] for row in facts.rows_with_pictures}
    pictures = Pictures(source, shown | {results.paths[row] for row in measured_rows(results)}, max_bytes)
    findings, num_leaked = read_findings(check or results.folder, results.split, shown)
    yield from summary(results, facts, num_leaked)
    if isinstance(images, str):
        yield f'<p class="note">Without pictures: {text(images)}.</p>'
    yield from figures(results, facts)
    yield from run_sections.class_table(results, facts)
    yield from run_sections.curves(results)
    yield from run_sections.confusion(results, facts, pictures)
    yield from run_sections.mistakes(results, facts, pictures, findings)
    yield from run_sections.reliability(results)
    yield from run_sections.answered(results, facts)
    yield from run_sections.slices(results, facts, pictures)
    yield from run_sections.times(results)
    yield from settings(results)
    yield from repeat(results)


def summary(results: RunResults, facts: RunFacts, num_leaked: int) -> Iterator[str]:
    """Yield the page in words."""
    count, num_right, split = len(results.labels), int(results.is_right.sum()), text(results.split)
    accuracy = facts.accuracy
    lines = [
        f"<strong>{num_right:,} of {count:,} {split} images are right: {percent(accuracy.value)}</strong>, "
        f"95 % interval {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}."
    ]
    largest = int(facts.support.argmax())
    lines[0] += (
        f" Always answering {text(results.classes[largest])} would be right for "
        f"{percent(facts.support[largest] / count)}."
    )
    if results.num_test:
        test = share_with_interval(results.num_test_right, results.num_test)
        lines.append(
            f"Of {results.num_test:,} test images {percent(test.value)} are right, {100 * test.low:.1f} to "
            f"{100 * test.high:.1f}. This page is about val, which has chosen the weights and may flatter them."
        )
    if num_leaked:
        lines.append(
            f'<span class="error">These figures are too good: by cvtrain check, {num_leaked:,} {split} images have a '
            "copy in another split.</span>"
        )
    for words in results.summary.get("data_warnings") or ():
        lines.append(f'<span class="warning">{text(words)}.</span>')
    if results.summary.get("skipped_images"):
        skipped = results.summary["skipped_images"]
        lines.append(f'<span class="warning">{skipped:,} images could not be read and are in no figure.</span>')
    weakest = next((k for k in facts.classes if facts.support[k]), None)
    if weakest is not None and num_right < count:
        lines.append(
            f"The weakest class is {text(results.classes[weakest])}: {int(facts.hits[weakest]):,} of "
            f"{int(facts.support[weakest]):,} are found."
        )
    if facts.pairs and facts.pairs[0].count > 1:
        pair = facts.pairs[0]
        true, pred = (text(results.classes[k]) for k in (pair.true, pair.pred))
        lines.append(f"The most frequent mistake is {true} taken for {pred}, {pair.count:,} times.")
    answers = {precision: cut for precision, cut in facts.answers.items() if cut and precision > accuracy.value}
    if answers:
        precision, cut = next(iter(answers.items()))
        lines.append(f"At {100 * precision:.0f} % precision {percent(cut.share)} of the images are answered.")
    if "monitor" in results.summary and not has_best(results):
        lines.append("best.pt is not there: the run did not keep it, or it was removed.")
    yield from (f"<p>{line}</p>" for line in lines)


def figures(results: RunResults, facts: RunFacts) -> Iterator[str]:
    """Yield the main figures; those with an interval first."""
    rows = [["accuracy", with_range(facts.accuracy)], ["macro F1", with_range(facts.f1.macro)]]
    stored = results.summary.get("metrics") or (results.summary.get("best") or {}).get("metrics") or {}
    for name, words in (
        ("top5_accuracy", "right among the five most probable"),
        ("balanced_accuracy", "balanced accuracy (mean recall)"),
        ("loss", "loss"),
    ):
        value = stored.get(f"{results.split}/{name}")
        if value is not None:
            rows.append([words, f"{value:.4f}" if name == "loss" else percent(value)])
    yield from table([f"on {results.split}", "with its 95 % interval"], rows)


def settings(results: RunResults) -> Iterator[str]:
    """Yield the settings of a training run that are not the defaults."""
    if results.is_evaluation:
        return
    changed = sorted(changed_settings(redact(results.config)).items())
    yield "<h2>Settings that are not the defaults</h2>"
    rows = (
        [f"<code>{text(key)}</code>", f"<code>{_value(value)}</code>", f"<code>{_value(default)}</code>"]
        for key, (value, default) in changed[:_MAX_SETTINGS]
    )
    yield from table(["setting", "value", "default"], rows, kind="settings")
    if len(changed) > _MAX_SETTINGS:
        yield f"<p>{len(changed) - _MAX_SETTINGS:,} more are in config.yaml.</p>"


def repeat(results: RunResults) -> Iterator[str]:
    """Yield the command that does the same again, and what it ran on."""
    words = [word for word in results.overrides if isinstance(word, str) and not word.startswith("resume=")]
    verb = ["evaluate"] if results.is_evaluation else []
    command = redact(shlex.join(["cvtrain", *verb, *words]))
    yield f"<h2>The command</h2>\n<pre>{text(command)}</pre>"
    environment = results.environment
    git = environment.get("git") or {}
    revision = f"{git['revision']}{' and changes' if git.get('dirty') else ''}" if git.get("revision") else ""
    versions = environment.get("versions") or {}
    images = results.summary.get("images")
    counts = ", ".join(f"{name} {count:,}" for name, count in images.items()) if isinstance(images, dict) else ""
    rows = {
        "run folder": results.folder.absolute(),
        "started in": environment.get("folder", ""),
        "started": environment.get("started", ""),
        "images": counts,
        "device": " ".join(str(results.summary.get(name, "")) for name in ("device", "precision")).strip(),
        "seconds": f"{results.summary['wall_seconds']:.0f}" if "wall_seconds" in results.summary else "",
        "git revision": revision,
        "versions": ", ".join(
            f"{name} {versions[name]}" for name in ("cvtrain", "torch", "python") if name in versions
        ),
    }
    cells = ([text(name), text(redact(str(value)))] for name, value in rows.items() if value)
    yield from table(["", ""], cells)


def _value(value: object) -> str:
    shown = json.dumps(value) if isinstance(value, (dict, list)) else format_value(value)
    return text(shown if len(shown) <= _MAX_VALUE else f"{shown[:_MAX_VALUE]} ...")
