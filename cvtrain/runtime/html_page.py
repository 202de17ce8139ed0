"""Self-contained HTML pages: no script, no request to anywhere, harmless whatever the texts on them hold."""

import base64
import io
from collections.abc import Iterable
from html import escape

import numpy as np
from PIL import Image

from cvtrain.config.text import display_text

# A browser that follows it loads nothing and runs nothing, even if a text came through unescaped.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_THUMBNAIL_SIDE = 128
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #546e7a; --error: #c62828; --warning: #8f5600; }
@media (prefers-color-scheme: dark) { :root { --quiet: #b0bec5; --error: #ff8a80; --warning: #ffcc80; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h1, code { overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0 .75rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; }
.error { color: var(--error); } .warning { color: var(--warning); } .note { color: var(--quiet); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .75rem; padding: 0; }
.grid li { list-style: none; border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; }
figure { margin: 0; }
figure img { width: 100%; height: 8rem; object-fit: contain; background: #8882; }
figcaption, .detail { font-size: .8rem; overflow-wrap: anywhere; }
"""


def text(value: object) -> str:
    """Return a value as text of a page: one line, without control characters, with `<`, `&` and quotes escaped."""
    return escape(display_text(str(value)))


def render_page(title: str, body: Iterable[str], *, generator: str, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: plain text, for the tab and the heading.
        body: HTML below the heading.
        generator: the command that makes such pages.
        style: CSS in addition to that of all pages.
    """
    heading = text(title)
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta name="generator" content="{text(generator)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        # Else a browser asks the server for one.
        '<link rel="icon" href="data:,">',
        f"<title>{text(generator)}: {heading}</title>\n<style>{_STYLE}{style}</style>\n</head>",
        f"<body>\n<h1>{heading}</h1>",
    )
    return "\n".join([*head, *body, "</body>\n</html>\n"])


def image_element(pixels: np.ndarray, alt: str) -> str:
    """Return an `img` element that holds a thumbnail of an image (H, W, 1 or 3) uint8."""
    source = f"data:image/webp;base64,{base64.b64encode(encode_thumbnail(pixels)).decode()}"
    return f'<img src="{source}" alt="{text(alt)}" loading="lazy">'


def encode_thumbnail(pixels: np.ndarray) -> bytes:
    """Return an image (H, W, 1 or 3) uint8, with sides of 128 at most, as WebP of about 4 KB."""
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=70)
    return encoded.getvalue()
