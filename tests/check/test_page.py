"""The page: whole, harmless whatever names hold, and without a request to anywhere."""

import csv

from made_sets import checked, encoded, picture, write
from page_checker import check_page

from cvtrain.check.findings import KINDS, Finding, by_check, quarantine, write_findings, write_quarantine
from cvtrain.check.page import MAX_SHOWN, Thumbnails, render_page

EVIL = "<script>alert('x')</script>\"\x1b[31m"


def made(tmp_path):
    files = {f"{seed}.jpg": encoded(picture(seed)) for seed in range(3)}
    files["=1+1.jpg"] = files["0.jpg"]
    paths = dict.fromkeys(files, 0)
    return checked(write(tmp_path, files), {"train": paths, "val": {"0.jpg": 0, "gone.jpg": 0}}, (EVIL, "b"))[0]


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def everything():
    pairs = [Finding(name, f"about {EVIL}", 0, score=0.5, partner=1, class_name=EVIL) for name in KINDS]
    return by_check([*pairs, Finding("unreadable", "cut", 5), Finding("shortcut", EVIL), Finding("copy", "same", 3)])


def test_page_is_whole_and_harmless(tmp_path):
    images = made(tmp_path)
    page = render_page(images, everything(), title=EVIL, summary=[EVIL], advice=f"cvtrain {EVIL}")
    check_page(page)
    assert all(f'id="{name}"' in page for name in KINDS)


def test_many_findings_are_cut(tmp_path):
    images = made(tmp_path)
    page = render_page(
        images, by_check([Finding("dark", "dark", 0)] * (MAX_SHOWN + 5)), title="t", summary=[], advice=""
    )
    assert page.count("<li>") == MAX_SHOWN
    assert "5 more are in findings.csv" in page
    thumbnails = Thumbnails(images, limit=1)
    assert thumbnails.html(0).startswith("<img")
    assert thumbnails.html(0).startswith("<img")
    assert (thumbnails.html(1), Thumbnails(images).html(5)) == ("", "")


def test_tables(tmp_path):
    images, groups = made(tmp_path), everything()
    write_findings(tmp_path / "findings.csv", images, groups)
    chosen = quarantine(images, groups)
    write_quarantine(tmp_path / "quarantine.csv", images, chosen)
    rows = read(tmp_path / "findings.csv")
    assert len(rows) == len(KINDS) + 3
    assert [row["check"] for row in rows] == sorted((row["check"] for row in rows), key=list(KINDS).index)
    assert rows[0] == {
        "path": "0.jpg",
        "split": "train",
        "class": EVIL.replace("\x1b", r"\x1b"),
        "check": "leakage",
        "score": "0.5",
        "partner": "1.jpg",
        "partner_split": "train",
        "partner_class": EVIL.replace("\x1b", r"\x1b"),
        "detail": f"about {EVIL}".replace("\x1b", r"\x1b"),
    }
    listed = read(tmp_path / "quarantine.csv")
    assert sorted(chosen) == [0, 1, 3, 5]
    assert [row["path"] for row in listed] == ["0.jpg", "1.jpg", "'=1+1.jpg", "gone.jpg"]
