"""Files that cannot be read, and files whose names lie about their format."""

import os
from collections.abc import Iterator

from cvtrain.check.findings import Finding
from cvtrain.check.measure import CheckedImages, Measurements

# Endings of each format that `file_format` knows.
ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
}
_KNOWN = frozenset(ending for endings in ENDINGS.values() for ending in endings)


def file_findings(images: CheckedImages, measured: Measurements) -> Iterator[Finding]:
    """Yield the images that could not be read, with the cause, and those of another format than their name says."""
    for index, cause in sorted(measured.errors.items()):
        yield Finding("unreadable", cause, index)
    for number, name in enumerate(measured.format_names):
        if not name:
            continue
        for index in (measured.formats == number).nonzero()[0].tolist():
            ending = os.path.splitext(images.name(index))[1].lower()  # noqa: PTH122
            if ending in _KNOWN and ending not in ENDINGS[name] and measured.readable[index]:
                yield Finding("wrong_extension", f"a {name} file named {ending}", index)
