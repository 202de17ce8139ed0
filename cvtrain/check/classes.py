"""Classes that are empty, small, missing in a split, or named so that they will be mixed up."""

import re
from collections.abc import Iterator

import numpy as np

from cvtrain.check.findings import Finding
from cvtrain.check.measure import CheckedImages
from cvtrain.config.text import display_text
from cvtrain.data.sources.source import Splits
from cvtrain.data.sources.splits import similar_names

# Training images of a class below which it is called small.
MIN_IMAGES = 10
_NUMBER = re.compile(r"\d+")


def class_findings(images: CheckedImages, splits: Splits) -> Iterator[Finding]:
    """Yield what is odd about the classes themselves; the score is a number of images."""
    counts = {
        split: np.bincount(source.labels, minlength=len(splits.classes)) for split, source in splits.parts().items()
    }
    for name in splits.empty_classes:
        yield Finding("empty_class", f"{display_text(name)} has no images", class_name=name, score=0)
    for label, name in enumerate(splits.classes):
        there = {split: int(of_split[label]) for split, of_split in counts.items()}
        held_out = {split: count for split, count in there.items() if split != "train"}
        numbers = ", ".join(f"{count} in {split}" for split, count in there.items())
        if there["train"] == 0:
            if any(held_out.values()):
                detail = f"{display_text(name)}: {numbers}"
                yield Finding("untrained_class", detail, class_name=name, score=sum(held_out.values()))
            continue
        if there["train"] < MIN_IMAGES:
            yield Finding("few_images", f"{display_text(name)}: {numbers}", class_name=name, score=there["train"])
        if not all(held_out.values()):
            yield Finding("unscored_class", f"{display_text(name)}: {numbers}", class_name=name, score=there["train"])
    for names in similar_names(splits.classes):
        yield Finding("similar_names", " / ".join(repr(display_text(name)) for name in names), class_name=names[0])
    natural, text = sorted(splits.classes, key=_natural), sorted(splits.classes)
    if natural != text:
        place = next(place for place in range(len(text)) if natural[place] != text[place])
        detail = f"as text {display_text(text[place])} comes before {display_text(natural[place])}"
        order = "numbers" if list(splits.classes) == natural else "text"
        yield Finding("text_order", f"{detail}; class ids here follow the {order}", class_name=text[place])


def _natural(name: str) -> list[tuple[int, str]]:
    """Order of `a2` before `a10`."""
    words = _NUMBER.split(name)
    numbers = [int(digits) for digits in _NUMBER.findall(name)]
    return [
        item
        for pair in zip([(0, word) for word in words], [(n, "") for n in [*numbers, 0]], strict=True)
        for item in pair
    ]
