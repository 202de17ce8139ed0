"""One page with everything that was found: self-contained, without scripts and without a request to anywhere."""

from collections.abc import Iterator

from cvtrain.check.findings import Finding, Severity, class_of, split_of
from cvtrain.check.measure import CheckedImages
from cvtrain.data.images.errors import BadImageError
from cvtrain.runtime import html_page
from cvtrain.runtime.html_page import text

# Findings of each check that are shown, and thumbnails on the whole page: about 4 KB each.
MAX_SHOWN, MAX_THUMBNAILS = 48, 600
_STYLE = """
figure { display: inline-block; width: calc(50% - .25rem); vertical-align: top; }
figure + figure { margin-left: .5rem; }
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
        return self._made[index]

    def _encode(self, index: int) -> str:
        try:
            return html_page.image_element(self.images.read(index), self.images.name(index))
        except BadImageError:
            return ""


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
    lines = [*(f"<p>{text(words)}</p>" for words in summary), *_table(groups)]
    if advice:
        lines.append(f"<p>Next: <code>{text(advice)}</code></p>")
    thumbnails = Thumbnails(images)
    for name, found in groups.items():
        lines += list(_section(name, found, thumbnails))
    return html_page.render_page(title, lines, generator="cvtrain check", style=_STYLE)


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
            f'<td><a href="#{name}">{text(kind.title)}</a></td></tr>'
        )
    yield "</tbody>\n</table>"


def _section(name: str, found: list[Finding], thumbnails: Thumbnails) -> Iterator[str]:
    kind = found[0].kind
    title = kind.title[0].upper() + kind.title[1:]
    mark = (
        "" if kind.severity is Severity.note else f' <span class="{kind.severity.value}">{kind.severity.value}</span>'
    )
    yield f'<h2 id="{name}">{text(title)} ({len(found):,}){mark}</h2>'
    yield f"<p>{text(kind.advice[0].upper() + kind.advice[1:])}.</p>"
    yield '<ul class="grid">'
    for finding in found[:MAX_SHOWN]:
        figures = [_figure(thumbnails, index) for index in (finding.index, finding.partner) if index is not None]
        score = "" if finding.score is None else f" (score {finding.score:.3g})"
        detail = text(finding.detail)
        yield f'<li>{"".join(figures)}<div class="detail">{detail}{score}</div></li>'
    yield "</ul>"
    if len(found) > MAX_SHOWN:
        yield f"<p>{len(found) - MAX_SHOWN:,} more are in findings.csv.</p>"


def _figure(thumbnails: Thumbnails, index: int) -> str:
    images = thumbnails.images
    caption = f"{split_of(images, index)}, {class_of(images, index)}"
    return (
        f"<figure>{thumbnails.html(index)}"
        f"<figcaption>{text(caption)}<br>{text(images.name(index))}</figcaption></figure>"
    )
