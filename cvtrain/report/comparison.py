"""Several runs side by side: which is better, by how much, and how sure that is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvtrain.config.changed_settings import PLACES
from cvtrain.config.errors import format_value
from cvtrain.config.redact import redact
from cvtrain.config.serialize import flatten
from cvtrain.data.sources.source import ImageSource
from cvtrain.report.intervals import Interval, difference_interval, mcnemar_test
from cvtrain.report.pictures import MAX_THUMBNAIL_BYTES, Pictures
from cvtrain.report.run_facts import RunFacts, compute_facts, share_with_interval
from cvtrain.report.run_page import GENERATOR, STYLE, run_body
from cvtrain.report.run_results import RunResults
from cvtrain.report.run_sections import picture_list, table, with_range
from cvtrain.runtime.files import atomic_write
from cvtrain.runtime.html_page import render_page, text

_MAX_IMAGES = 16
_MAX_SETTINGS = 60


@dataclass(frozen=True)
class Paired:
    """Two runs on the same images.

    Attributes:
        won, lost: rows of the first run's images that only the second, only the first has right.
        difference: of the accuracies, in -1..1; above 0: the second is better.
        p_value: of McNemar's exact test, two-sided.
    """

    won: list[int]
    lost: list[int]
    difference: Interval
    p_value: float


def pair_runs(first: RunResults, second: RunResults) -> Paired | str:
    """Compare two runs image by image; why that cannot be done, if their images or labels differ."""
    orders = [sorted(range(len(run.paths)), key=run.paths.__getitem__) for run in (first, second)]
    names = [[run.paths[row] for row in order] for run, order in zip((first, second), orders, strict=True)]
    if names[0] != names[1]:
        common = len(set(names[0]) & set(names[1]))
        return (
            f"they were scored on different images, {len(names[0]):,} and {len(names[1]):,} with {common:,} in common: "
            "their accuracies say nothing about which is better. Score both on the same images by cvtrain evaluate"
        )
    pairs = list(zip(*orders, strict=True))
    num_other = sum(first.classes[first.labels[a]] != second.classes[second.labels[b]] for a, b in pairs)
    if num_other:
        return f"{num_other:,} of their images have another label in the one than in the other"
    won = [a for a, b in pairs if second.is_right[b] and not first.is_right[a]]
    lost = [a for a, b in pairs if first.is_right[a] and not second.is_right[b]]
    return Paired(won, lost, difference_interval(len(won), len(lost), len(pairs)), mcnemar_test(len(won), len(lost)))


def describe_pair(first: str, second: str, found: Paired | str) -> str:
    """Return a comparison in words: `B is better than A by 1.2 points, 95 % interval 0.1 to 2.3: ...`."""
    if isinstance(found, str):
        return f"{second} and {first} cannot be compared: {found}."
    points, low, high = (100 * end for end in found.difference)
    if points < 0:
        first, second, points, low, high = second, first, -points, -high, -low
    ends = f"95 % interval {low:.1f} to {high:.1f}"
    num_won, num_lost = sorted((len(found.won), len(found.lost)), reverse=True)
    counts = (
        f"{num_won:,} images only the better one has right, {num_lost:,} only the other (exact McNemar test, "
        f"p = {found.p_value:.2g})"
    )
    if points == 0:
        return f"{second} and {first} are right equally often, {ends}: each alone on {num_won:,} images."
    if low > 0:
        return f"{second} is better than {first} by {points:.1f} points, {ends}: {counts}."
    return f"{second} is {points:.1f} points above {first}, which may be chance, {ends}: {counts}."


def names_of(runs: Sequence[RunResults]) -> list[str]:
    """Return a name of each run that no other has."""
    titles = [run.title for run in runs]
    return titles if len(set(titles)) == len(runs) else [str(run.folder) for run in runs]


def write_comparison(
    path: Path, runs: Sequence[RunResults], images: Sequence[ImageSource | str], *, check: Path | None = None
) -> list[str]:
    """Write the page of several runs, atomically, and return what it says of each against the first.

    Args:
        images: of each run's split, or why there are none.
        check: folder of a `cvtrain check` of the set; None: each run's own.

    Raises:
        ConfigError: a findings.csv is damaged.
        OSError: the disk is full or the folder cannot be written; an old page is untouched.
    """
    names, facts = names_of(runs), [compute_facts(run) for run in runs]
    found = [pair_runs(runs[0], run) for run in runs[1:]]
    words = [describe_pair(names[0], name, pair) for name, pair in zip(names[1:], found, strict=True)]
    max_bytes = MAX_THUMBNAIL_BYTES // (len(runs) + 1)

    def body() -> Iterator[str]:
        yield from (f"<p><strong>{text(line)}</strong></p>" for line in words)
        if len(runs) > 2:
            yield "<p>Of twenty comparisons between equals, one interval leaves out 0 by chance.</p>"
        yield from side_by_side(names, runs, facts)
        yield from differing_settings(names, runs)
        if len(runs) == 2 and isinstance(found[0], Paired):
            yield from disagreements(names, runs, images[0], found[0], max_bytes)
        for name, run, own, source in zip(names, runs, facts, images, strict=True):
            yield f"<details>\n<summary>{text(name)}</summary>"
            yield from run_body(run, own, source, check=check, max_bytes=max_bytes)
            yield "</details>"

    page = render_page(f"{len(runs)} runs", body(), generator=GENERATOR, style=STYLE)
    with atomic_write(path) as file:
        file.write(page)
    return words


def side_by_side(names: Sequence[str], runs: Sequence[RunResults], facts: Sequence[RunFacts]) -> Iterator[str]:
    rows = []
    for name, run, own in zip(names, runs, facts, strict=True):
        test = share_with_interval(run.num_test_right, run.num_test) if run.num_test else None
        error = (run.summary.get("calibration") or {}).get("error_after")
        rows.append(
            [
                text(name),
                f"{len(run.labels):,} {text(run.split)}",
                with_range(own.accuracy),
                with_range(own.f1.macro),
                "" if test is None else with_range(test),
                "" if error is None else f"{100 * error:.1f} %",
                f"{run.summary['wall_seconds']:,.0f} s" if "wall_seconds" in run.summary else "",
            ]
        )
    head = ["run", "images", "accuracy", "macro F1", "test accuracy", "calibration error", "time"]
    yield from table(head, rows)


def differing_settings(names: Sequence[str], runs: Sequence[RunResults]) -> Iterator[str]:
    yield "<h2>Settings that differ</h2>"
    flat = [flatten(redact(run.config)) for run in runs]
    keys = [key for key in sorted(set().union(*flat)) if key not in PLACES]
    differing = [key for key in keys if any(each.get(key) != flat[0].get(key) for each in flat)]
    if not differing:
        yield "<p>None.</p>"
        return
    rows = (
        [f"<code>{text(key)}</code>", *(f"<code>{_value(each, key)}</code>" for each in flat)]
        for key in differing[:_MAX_SETTINGS]
    )
    yield from table(["setting", *names], rows, kind="settings")
    if len(differing) > _MAX_SETTINGS:
        yield f"<p>{len(differing) - _MAX_SETTINGS:,} more are in config.yaml.</p>"


def _value(flat: dict[str, object], key: str) -> str:
    return text(format_value(flat[key])[:200]) if key in flat else ""


def disagreements(
    names: Sequence[str], runs: Sequence[RunResults], images: ImageSource | str, found: Paired, max_bytes: int
) -> Iterator[str]:
    """Yield images that only one of two runs has right, the surest predictions of the first one first."""
    first, second = runs
    pictures = Pictures(
        None if isinstance(images, str) else images, (first.paths[row] for row in found.won + found.lost), max_bytes
    )
    preds = dict(zip(second.paths, second.preds.tolist(), strict=True))
    for name, rows in zip(reversed(names), (found.won, found.lost), strict=True):
        if not rows:
            continue
        shown = np.array(rows)[np.argsort(-first.confidences[rows], kind="stable")][:_MAX_IMAGES].tolist()
        yield f"<h2>Images that only {text(name)} has right ({len(rows):,})</h2>"
        captions = [
            f"labelled {text(first.classes[first.labels[row]])}<br>"
            f"{text(first.classes[first.preds[row]])}, then {text(second.classes[preds[first.paths[row]]])}"
            f"<br>{text(first.paths[row])}"
            for row in shown
        ]
        yield from picture_list([first.paths[row] for row in shown], captions, pictures)
