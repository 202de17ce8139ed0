"""What `check` found: its kinds, and the tables of it."""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from cvtrain.check.measure import CheckedImages
from cvtrain.config.text import display_text, escape_formula
from cvtrain.runtime.files import atomic_write

FINDING_COLUMNS = ("path", "split", "class", "check", "score", "partner", "partner_split", "partner_class", "detail")
QUARANTINE_COLUMNS = ("path", "reason")


class Severity(str, Enum):
    """error: figures of the set are wrong; warning: they may be; note: worth a look."""

    error = "error"
    warning = "warning"
    note = "note"


@dataclass(frozen=True)
class Kind:
    """A check. `title` names what was found; `advice` is what to do about it."""

    severity: Severity
    title: str
    advice: str


# By name, in the order in which they are shown.
KINDS = {
    "leakage": Kind(
        Severity.error,
        "images of val or test with a copy in another split",
        "the figures of that split are too good: exclude them, or move the copies to one side",
    ),
    "unreadable": Kind(Severity.error, "images that cannot be read", "mend or remove the files"),
    "untrained_class": Kind(
        Severity.error,
        "classes in val or test that train has no images of",
        "a model never names them: add images to train, or take the class out",
    ),
    "conflict": Kind(
        Severity.warning, "copies in one split under different labels", "one of the labels is wrong: look at both"
    ),
    "copy": Kind(Severity.warning, "copies within a split", "they count several times: keep one of each"),
    "label_suspect": Kind(
        Severity.warning, "labels that the images do not look like", "look at them, the most suspect first"
    ),
    "shortcut": Kind(
        Severity.warning,
        "properties that tell the class without looking at what is shown",
        "a model may learn them instead: see whether new images will have them, too",
    ),
    "empty_class": Kind(Severity.warning, "class folders without images", "fill or remove them"),
    "few_images": Kind(Severity.warning, "classes with few images in train", "add images, or merge classes"),
    "unscored_class": Kind(Severity.warning, "classes without images in val or test", "their accuracy is not measured"),
    "similar_names": Kind(
        Severity.warning, "class names that differ only by case or blanks", "rename them if they are one class"
    ),
    "text_order": Kind(
        Severity.note,
        "numbered class names whose order as text is another",
        "compare class names, not ids, with other tools",
    ),
    "wrong_extension": Kind(
        Severity.note, "files of another format than their name says", "cvtrain reads them; other tools may not"
    ),
    "dark": Kind(Severity.note, "images darker than the rest", "see whether they show anything"),
    "light": Kind(Severity.note, "images lighter than the rest", "see whether they show anything"),
    "low_information": Kind(Severity.note, "images with little contrast", "see whether they show anything"),
    "blurred": Kind(Severity.note, "images less sharp than the rest", "see whether they show enough"),
    "odd_size": Kind(Severity.note, "images much smaller or larger than the rest", "see where they come from"),
    "odd_aspect": Kind(
        Severity.note, "images of a much longer shape than the rest", "a centre crop loses much of them"
    ),
}


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        check: name in KINDS.
        detail: in words.
        index: the image; None: a class or the whole set.
        class_name: of a finding about a class.
        score: the higher, the surer; what it measures is in docs/check.md.
        partner: the other image of a pair.
        partner_class: the class that a label suspect looks like.
    """

    check: str
    detail: str
    index: int | None = None
    class_name: str = ""
    score: float | None = None
    partner: int | None = None
    partner_class: str = ""

    @property
    def kind(self) -> Kind:
        return KINDS[self.check]


def by_check(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Return the findings by check, in the order of KINDS; of each check the highest score first."""
    groups: dict[str, list[Finding]] = {name: [] for name in KINDS}
    for finding in findings:
        groups[finding.check].append(finding)
    order = {name: sorted(found, key=lambda each: -(each.score or 0.0)) for name, found in groups.items()}
    return {name: found for name, found in order.items() if found}


def class_of(images: CheckedImages, index: int) -> str:
    """Return the name of the class of image `index`, fit to be shown."""
    return display_text(images.classes[int(images.labels[index])])


def split_of(images: CheckedImages, index: int) -> str:
    return images.splits[int(images.split_ids[index])]


def describe(images: CheckedImages, finding: Finding) -> str:
    """Return a finding as one line of text."""
    if finding.index is None:
        return finding.detail
    words = f"{images.name(finding.index)}"
    if finding.partner is not None:
        words += f" = {images.name(finding.partner)}"
    return f"{words} ({finding.detail})"


def write_findings(path: str | os.PathLike[str], images: CheckedImages, groups: dict[str, list[Finding]]) -> None:
    """Write a row for each finding as CSV, atomically."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FINDING_COLUMNS)
        for found in groups.values():
            writer.writerows(map(escape_formula, _row(images, finding)) for finding in found)


def _row(images: CheckedImages, finding: Finding) -> Sequence[str]:
    index, partner = finding.index, finding.partner
    return (
        "" if index is None else images.name(index),
        "" if index is None else split_of(images, index),
        display_text(finding.class_name) if index is None else class_of(images, index),
        finding.check,
        "" if finding.score is None else f"{finding.score:.6g}",
        "" if partner is None else images.name(partner),
        "" if partner is None else split_of(images, partner),
        display_text(finding.partner_class) if partner is None else class_of(images, partner),
        display_text(finding.detail),
    )


def quarantine(images: CheckedImages, groups: dict[str, list[Finding]]) -> dict[int, str]:
    """Return the images that had better be left out, with the reason.

    Copies in val or test of a training image, all but the first of the copies within a split, both sides of a pair with
    different labels, and what cannot be read.
    """
    chosen: dict[int, str] = {}
    for check in ("unreadable", "leakage", "conflict", "copy"):
        for finding in groups.get(check, ()):
            assert finding.index is not None
            chosen.setdefault(finding.index, f"{check}: {finding.detail}")
            if check == "conflict" and finding.partner is not None:
                chosen.setdefault(finding.partner, f"{check}: {finding.detail}")
    return dict(sorted(chosen.items()))


def write_quarantine(path: str | os.PathLike[str], images: CheckedImages, chosen: dict[int, str]) -> None:
    """Write what `quarantine` returned as CSV, as `data.exclude` takes it; the header alone if there is nothing."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(QUARANTINE_COLUMNS)
        writer.writerows(
            (escape_formula(images.name(index)), escape_formula(display_text(reason)))
            for index, reason in chosen.items()
        )
