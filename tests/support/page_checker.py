"""What holds for each page that a command writes, whatever names its images and classes have."""

from html.parser import HTMLParser

EVIL = "<script>alert('x')</script>\"\x1b[31m"
_VOID = {"meta", "img", "br", "link"}
_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td"),
    *("a", "code", "ul", "li", "figure", "img", "figcaption", "br", "div", "span", "link", "strong", "pre", "details"),
    *("summary", "svg", "path", "text", "circle", "rect"),
}


class PageReader(HTMLParser):
    """Collects texts, tags and sources; every element has to be closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.ids += [value for name, value in attrs if name == "id"]
        assert not any(name.startswith("on") for name, _ in attrs)
        assert len({name for name, _ in attrs}) == len(attrs)
        assert tag != "img" or dict(attrs)["alt"]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


def check_page(page: str) -> str:
    """Check that a page is whole, runs nothing and asks nobody for anything; return its text."""
    reader = PageReader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert reader.tags <= _TAGS
    assert all(source.startswith(("#", "data:image/webp;base64,")) or source == "data:," for source in reader.sources)
    assert len(set(reader.ids)) == len(reader.ids)
    assert "default-src 'none'" in page
    assert not any(word in page for word in ("url(", "@import", "http:", "https:", "\x1b"))
    return " ".join(" ".join(reader.texts).split())
