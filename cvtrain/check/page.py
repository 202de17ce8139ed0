"""One page with everything that was found: self-contained, without scripts and without a request to anywhere."""

import base64
import io
from collections.abc import Iterator
from html import escape

import numpy as np
from PIL import Image

from cvtrain.check.findings import Finding, Severity, class_of, split_of
from cvtrain.check.measure import CheckedImages
from cvtrain.config.text import display_text
from cvtrain.data.images.errors import BadImageError

# Findings of each check that are shown, and thumbnails on the whole page: about 4 KB each.
MAX_SHOWN, MAX_THUMBNAILS = 48, 600
_SIDE = 128
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --error: #c62828; --warning: #b26a00; --note: #546e7a; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h1, code { overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0 .75rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; }
.error { color: var(--error); } .warning { color: var(--warning); } .note { color: var(--note); }
@media (prefers-color-scheme: dark) {
  .error { color: #ff8a80; } .warning { color: #ffcc80; } .note { color: #b0bec5; }
}
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .75rem; padding: 0; }
.grid li { list-style: none; border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; }
figure { display: inline-block; width: calc(50% - .25rem); margin: 0; vertical-align: top; }
figure + figure { margin-left: .5rem; }
figure img { width: 100%; height: 8rem; object-fit: contain; background: #8882; }
figcaption, .detail { font-size: .8rem; overflow-wrap: anywhere; }
"""


class Thumbnails:
    """Images as data URIs, WebP, up to a number.

    Args:
        images: where they are read from.
        limit: how many are made; later ones are left out.
    """

    def __init__(self, images: CheckedImages, limit: int = MAX_THUMBNAILS) -> None:
        self.images = images
        self.left = limit
        self._made: dict[int, str] = {}

    def html(self, index: int) -> str:
        """Return the `img` element of image `index`; nothing if it cannot be read, or the limit is reached."""
        if index not in self._made:
            if self.left <= 0:
                return ""
            self.left -= 1
            self._made[index] = self._encode(index)
        source = self._made[index]
        alt = escape(self.images.name(index))
        return f'<img src="{source}" alt="{alt}" loading="lazy">' if source else ""

    def _encode(self, index: int) -> str:
        try:
            pixels = self.images.read(index)
        except BadImageError:
            return ""
        image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
        image.thumbnail((_SIDE, _SIDE))
        encoded = io.BytesIO()
        image.save(encoded, "WEBP", quality=70)
        return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def render_page(
    images: CheckedImages, groups: dict[str, list[Finding]], *, title: str, summary: list[str], advice: str
) -> str:
    """Return the page as HTML.

    Args:
        groups: findings by check, in the order in which they are shown.
        title: name of the set.
        summary: paragraphs below the title.
        advice: the command to type next.
    """
    heading = escape(display_text(title))
    lines = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>cvtrain check: {heading}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{heading}</h1>",
    ]
    lines += [f"<p>{escape(display_text(text))}</p>" for text in summary]
    lines += list(_table(groups))
    if advice:
        lines.append(f"<p>Next: <code>{escape(display_text(advice))}</code></p>")
    thumbnails = Thumbnails(images)
    for name, found in groups.items():
        lines += list(_section(name, found, thumbnails))
    return "\n".join([*lines, "</body>\n</html>\n"])


def _table(groups: dict[str, list[Finding]]) -> Iterator[str]:
    if not groups:
        yield "<p>Nothing was found.</p>"
        return
    yield "<table>\n<thead><tr><th>severity</th><th>found</th><th>what</th></tr></thead>\n<tbody>"
    for name, found in groups.items():
        kind = found[0].kind
        severity = kind.severity.value
        yield (
            f'<tr><td class="{severity}">{severity}</td><td class="number">{len(found):,}</td>'
            f'<td><a href="#{name}">{escape(kind.title)}</a></td></tr>'
        )
    yield "</tbody>\n</table>"


def _section(name: str, found: list[Finding], thumbnails: Thumbnails) -> Iterator[str]:
    kind = found[0].kind
    title = kind.title[0].upper() + kind.title[1:]
    mark = (
        "" if kind.severity is Severity.note else f' <span class="{kind.severity.value}">{kind.severity.value}</span>'
    )
    yield f'<h2 id="{name}">{escape(title)} ({len(found):,}){mark}</h2>'
    yield f"<p>{escape(kind.advice[0].upper() + kind.advice[1:])}.</p>"
    yield '<ul class="grid">'
    for finding in found[:MAX_SHOWN]:
        figures = [_figure(thumbnails, index) for index in (finding.index, finding.partner) if index is not None]
        score = "" if finding.score is None else f" (score {finding.score:.3g})"
        detail = escape(display_text(finding.detail))
        yield f'<li>{"".join(figures)}<div class="detail">{detail}{score}</div></li>'
    yield "</ul>"
    if len(found) > MAX_SHOWN:
        yield f"<p>{len(found) - MAX_SHOWN:,} more are in findings.csv.</p>"


def _figure(thumbnails: Thumbnails, index: int) -> str:
    images = thumbnails.images
    caption = f"{split_of(images, index)}, {class_of(images, index)}"
    return (
        f"<figure>{thumbnails.html(index)}"
        f"<figcaption>{escape(caption)}<br>{escape(images.name(index))}</figcaption></figure>"
    )
