"""The parts of a report, each as lines of HTML."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from cvtrain.report.chart import Axis, Series, bar, chart
from cvtrain.report.intervals import Interval
from cvtrain.report.overlays import overlay_path, read_overlays
from cvtrain.report.pictures import Pictures
from cvtrain.report.plots import epoch_ends, epochs_at, series_of
from cvtrain.report.run_facts import (
    RunFacts,
    Slice,
    share_with_interval,
    slice_by_folder,
    slice_by_properties,
)
from cvtrain.report.run_results import RunResults
from cvtrain.runtime.html_page import image_element, text

# Above this a confusion matrix has no room on a page.
MAX_MATRIX = 40
# Bins with fewer images say little of a calibration.
_MIN_IN_BIN = 5

STYLE = """
.scroll { overflow-x: auto; }
.pictures { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.row { display: grid; grid-template-columns: repeat(4, 1fr); gap: .25rem; }
.row img { height: 4rem; }
.pictures img + img { margin-top: .25rem; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
.range { color: var(--quiet); font-size: .85em; white-space: nowrap; }
.matrix td, .matrix th { padding: .15rem .4rem; border: 1px solid var(--line); font-size: .85rem; }
.matrix td { text-align: right; }
.scroll { margin-bottom: 1rem; }
.settings td:first-child { white-space: nowrap; }
tr + tr > td { border-top: 1px solid var(--line); }
td.wide { min-width: 9rem; overflow-wrap: anywhere; }
summary { font-size: 1.3rem; margin: 2rem 0 0; cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8882; padding: .75rem; border-radius: .5rem; }
"""


def percent(share: float) -> str:
    """Return a share in words, `89.1 %`."""
    return f"{100 * share:.1f} %"


def with_range(interval: Interval) -> str:
    """Return `89.1 %` with the ends of its interval in small."""
    ends = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
    return f'{percent(interval.value)} <span class="range">{ends}</span>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), kind: str = ""
) -> Iterator[str]:
    """Yield a table that scrolls sideways where it is wider than the screen.

    Args:
        head: plain text.
        rows: cells as HTML.
        numbers: columns that are aligned to the right.
        kind: CSS class.
    """
    right = [' class="number"' if column in numbers else "" for column in range(len(head))]
    cells = "".join(f"<th{place}>{text(name)}</th>" for name, place in zip(head, right, strict=True))
    yield f'<div class="scroll {kind}"><table>\n<thead><tr>{cells}</tr></thead>\n<tbody>'
    for row in rows:
        yield "<tr>" + "".join(f"<td{place}>{cell}</td>" for cell, place in zip(row, right, strict=True)) + "</tr>"
    yield "</tbody>\n</table></div>"


def class_table(results: RunResults, facts: RunFacts) -> Iterator[str]:
    yield "<h2>Classes</h2>"
    yield "<p>Recall: share of a class's images that are found. Precision: share of what is called so and is so.</p>"

    def rows() -> Iterator[list[str]]:
        for k in facts.classes:
            hits, support, predicted = (int(counts[k]) for counts in (facts.hits, facts.support, facts.predicted))
            shares = [
                with_range(share_with_interval(hits, count)) if count else "none" for count in (support, predicted)
            ]
            yield [text(results.classes[k]), f"{support:,}", *shares, with_range(facts.f1.per_class[k])]

    yield from table(["class", "images", "recall", "precision", "F1"], rows(), numbers=[1])
    left = int((facts.support + facts.predicted > 0).sum()) - len(facts.classes)
    if left:
        yield f"<p>The lowest F1 first. {left:,} classes more are in per_class_{text(results.split)}.csv.</p>"


def curves(results: RunResults) -> Iterator[str]:
    """Yield loss, accuracy and learning rate over the epochs, those that have at least two points."""
    rows = results.metrics
    ends = epoch_ends(rows)
    rows = [{**row, "step": epochs_at(row["step"], ends)} for row in rows]
    clock = Axis("epoch" if ends else "step")
    charts = []
    for title, name, is_share in (("loss", "loss", False), ("accuracy", "accuracy", True)):
        series = []
        if ends:
            series.append(Series("", *series_of(rows, f"train/{name}"), "a faint"))
            series.append(Series("train", *series_of(rows, f"train/epoch_{name}")))
        else:
            series.append(Series("train", *series_of(rows, f"train/{name}")))
        series.append(Series("val", *series_of(rows, f"val/{name}"), "b"))
        if max(len(each.x) for each in series) > 1:
            y_axis = Axis(title, is_share=is_share, may_be_log=not is_share)
            charts.append(chart(f"{title} of train and val", clock, y_axis, series))
    rate = Series("", *series_of(rows, "train/lr"), "c")
    if len(rate.x) > 1:
        y_axis = Axis("learning rate", limits=(0.0, 1.05 * float(np.nanmax(rate.y)) or 1.0))
        charts.append(chart("learning rate", clock, y_axis, [rate]))
    if charts:
        yield '<h2>Training</h2>\n<div class="charts">'
        yield from charts
        yield "</div>"


def confusion(results: RunResults, facts: RunFacts, pictures: Pictures) -> Iterator[str]:
    yield "<h2>What is taken for what</h2>"
    if len(results.classes) <= MAX_MATRIX:
        yield from _matrix(results, facts)
    if not facts.pairs:
        yield "<p>No two classes were confused.</p>"
        return
    yield f"<p>The most frequent of {facts.num_pairs:,} confusions, with the most confident of each:</p>"
    yield '<ul class="grid">'
    for pair in facts.pairs:
        true, pred = (text(results.classes[k]) for k in (pair.true, pair.pred))
        share = f"{pair.count:,} of {int(facts.support[pair.true]):,}"
        shown = (pictures.element(results.paths[row]) for row in pair.rows)
        images = "".join(f"<figure>{element}</figure>" for element in shown if element)
        words = f"<strong>{true}</strong> taken for <strong>{pred}</strong>: {share}"
        yield f'<li>{words}<div class="row">{images}</div></li>'
    yield "</ul>"


def _matrix(results: RunResults, facts: RunFacts) -> Iterator[str]:
    counts = np.zeros((len(results.classes),) * 2, np.int64)
    np.add.at(counts, (results.labels, results.preds), 1)
    names = [text(name) for name in results.classes]
    yield "<p>Rows are true classes, columns predicted ones; the darker, the larger the share of the true class.</p>"
    heads = "".join(f"<th>{name}</th>" for name in names)
    yield f'<div class="scroll"><table class="matrix">\n<thead><tr><td></td>{heads}</tr></thead>\n<tbody>'
    for true, name in enumerate(names):
        cells = []
        for pred, count in enumerate(counts[true].tolist()):
            strength = 0.6 * count / max(1, int(facts.support[true]))
            color = "0 114 178" if true == pred else "213 94 0"
            style = f' style="background:rgb({color}/{strength:.2f})"' if count else ""
            cells.append(f"<td{style}>{f'{count:,}' if count else ''}</td>")
        yield f"<tr><th>{name}</th>{''.join(cells)}</tr>"
    yield "</tbody>\n</table></div>"


def mistakes(results: RunResults, facts: RunFacts, pictures: Pictures, findings: dict[str, list[str]]) -> Iterator[str]:
    """Yield the wrong images with the highest confidence, with what `cvtrain check` had found about them."""
    if not facts.mistakes:
        return
    num_wrong = int((~results.is_right).sum())
    yield "<h2>The most confident mistakes</h2>"
    yield f"<p>{len(facts.mistakes):,} of {num_wrong:,}: a wrong label, or what the network has not learned.</p>"
    overlays = read_overlays(overlay_path(results.folder / "plots" / f"mistakes_{results.split}.png"))
    if overlays and pictures:
        yield "<p>Below an image, where the network saw what it answered, in the part that it got.</p>"
    captions = []
    for row in facts.mistakes:
        true, pred = (text(results.classes[k]) for k in (results.labels[row], results.preds[row]))
        caption = f"{pred} {results.confidences[row]:.2f}<br>labelled {true}<br>{text(results.paths[row])}"
        found = findings.get(results.paths[row], ())
        captions.append(caption + "".join(f'<br><span class="warning">check: {text(words)}</span>' for words in found))
    yield from picture_list([results.paths[row] for row in facts.mistakes], captions, pictures, overlays)


def picture_list(
    names: Sequence[str],
    captions: Sequence[str],
    pictures: Pictures,
    overlays: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Iterator[str]:
    """Yield a grid of images with their captions, which are HTML.

    Args:
        overlays: pictures (H, W, 3) uint8 that stand below the images of these names.
    """
    yield '<ul class="grid pictures">'
    for name, caption in zip(names, captions, strict=True):
        images = pictures.element(name)
        if images and name in overlays:
            images += image_element(overlays[name], f"heat map of {name}")
        yield f"<li><figure>{images}<figcaption>{caption}</figcaption></figure></li>"
    yield "</ul>"


def reliability(results: RunResults) -> Iterator[str]:
    """Yield how often predictions of some confidence are right, without and with the temperature."""
    calibration = results.summary.get("calibration") or {}
    temperature = calibration.get("temperature", 1.0)
    charts = []
    for when, color in (("before", "b"), ("after", "a")):
        bins = [each for each in calibration.get(f"bins_{when}") or () if each["images"] >= _MIN_IN_BIN]
        if not bins or (when == "before" and temperature == 1.0):
            continue
        shares = [share_with_interval(each["right"], each["images"]) for each in bins]
        confidences = [each["confidence"] / each["images"] for each in bins]
        x_axis, y_axis = (Axis(name, (0.0, 1.0), is_share=True) for name in ("confidence", "share that is right"))
        name = f"error {percent(calibration[f'error_{when}'])}"
        values, lows, highs = zip(*shares, strict=True)
        points = Series(name, confidences, values, color, lows, highs)
        title = f"share of right predictions by confidence, {when} the temperature"
        charts.append((when, chart(title, x_axis, y_axis, [points], diagonal=True)))
    if not charts:
        return
    yield "<h2>How far probabilities can be trusted</h2>"
    yield (
        "<p>On the diagonal, of images that get 80 % about 80 % are right. Bars are 95 % intervals; the error is the "
        f"mean distance, weighted by images. The temperature is {temperature:.3g}: probabilities are softmax(logits / "
        f"{temperature:.3g}).</p>"
    )
    yield '<div class="charts">'
    for when, drawn in charts:
        caption = f"{when} the temperature" if temperature != 1.0 else "as predicted"
        yield f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"
    yield "</div>"


def answered(results: RunResults, facts: RunFacts) -> Iterator[str]:
    yield "<h2>Answering only when sure</h2>"
    yield (
        "<p>If the less confident images go to a person, the rest is right more often. <code>cvtrain predict ... "
        "threshold=T</code> writes <code>unsure</code> for them.</p>"
    )
    stride = max(1, len(facts.cuts) // 400)
    # Of a few images alone, the share says nothing.
    drawn = [cut for cut in facts.cuts if cut.share * len(results.paths) >= 10][::-stride][::-1]
    if len(drawn) > 1:
        x_axis, y_axis = (Axis(name, is_share=True) for name in ("answered", "of these right"))
        line = Series("", [cut.share for cut in drawn], [cut.accuracy for cut in drawn])
        yield chart("accuracy by the share of images that are answered", x_axis, y_axis, [line])
    rows = []
    for precision, cut in facts.answers.items():
        if cut is None:
            rows.append([f"{100 * precision:.0f} %", "none", "", ""])
            continue
        count = round(cut.share * len(results.paths))
        accuracy = share_with_interval(round(cut.accuracy * count), count)
        # Rounded down, so that it leaves out none of them.
        threshold = f"{int(cut.threshold * 1e4) / 1e4:.4f}"
        rows.append([f"{100 * precision:.0f} %", percent(cut.share), with_range(accuracy), threshold])
    yield from table(["wanted", "answered", "of these right", "threshold"], rows)


def slices(results: RunResults, facts: RunFacts, pictures: Pictures) -> Iterator[str]:
    found, num_measured = slice_by_properties(results, pictures)
    folders = slice_by_folder(results)
    if not found and not folders:
        return
    yield "<h2>Slices</h2>"
    if found:
        some = f" ({num_measured:,} images, chosen at random)" if num_measured < len(results.paths) else ""
        yield f"<p>Accuracy by properties of the images{some}.</p>"
    for name, parts in {**found, "folder": folders}.items():
        if parts:
            yield from table([name, "images", "accuracy"], _slice_rows(parts, facts.accuracy.value), numbers=[1])


def _slice_rows(parts: list[Slice], overall: float) -> Iterator[list[str]]:
    for part in parts:
        is_apart = part.accuracy.high < overall or part.accuracy.low > overall
        word = "lower" if part.accuracy.value < overall else "higher"
        mark = f' <span class="warning">{word} than the whole</span>' if is_apart else ""
        yield [text(part.name), f"{part.count:,}", with_range(part.accuracy) + mark]


def times(results: RunResults) -> Iterator[str]:
    spent: dict[str, Any] = results.summary.get("time") or {}
    loop = {name: each for name, each in (spent.get("loop") or {}).items() if each["share"] >= 0.0005}
    if not loop:
        return
    yield "<h2>Where the time went</h2>"
    if spent.get("bottleneck"):
        yield f"<p>{text(spent['bottleneck'])}.</p>"
    rows = [
        [text(name.replace("_", " ")), f"{each['seconds']:.1f} s", f"{bar(each['share'])} {percent(each['share'])}"]
        for name, each in sorted(loop.items(), key=lambda item: -item[1]["share"])
    ]
    yield from table(["stage", "time", "share"], rows, numbers=[1])
