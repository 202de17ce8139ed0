import csv
import io
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import CsvConfig
from cvtrain.data.sources.manifest import build_csv
from cvtrain.data.sources.source import ImageSource, Splits


def make_images(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def read(tmp_path: Path, text: str | bytes, **changes: object) -> Splits:
    """The splits of a manifest in `tmp_path` with this text."""
    file = tmp_path / "images.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return build_csv(CsvConfig(file=str(file), **changes), reader=lambda path: np.zeros((1, 1, 3), np.uint8))


def rows(source: ImageSource, splits: Splits) -> list[tuple[str, str]]:
    return [(source.name(row), splits.classes[source.labels[row]]) for row in range(len(source))]


PLAIN = """path,label,split
a/1.jpg,ants,train
a/2.jpg,bees,train
b/3.jpg,bees,val
b/4.jpg,ants,test
"""
FILES = ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg")


def check_plain(splits: Splits) -> None:
    assert splits.classes == ("ants", "bees")
    assert rows(splits.train, splits) == [("a/1.jpg", "ants"), ("a/2.jpg", "bees")]
    assert rows(splits.val, splits) == [("b/3.jpg", "bees")]
    assert splits.test is not None
    assert rows(splits.test, splits) == [("b/4.jpg", "ants")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("setting", ["auto", "given"])
def test_delimiters(tmp_path: Path, delimiter: str, setting: str) -> None:
    make_images(tmp_path, *FILES)
    text = PLAIN.replace(",", delimiter)
    check_plain(read(tmp_path, text, delimiter="auto" if setting == "auto" else delimiter))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, line_end: str) -> None:
    make_images(tmp_path, *FILES)
    check_plain(read(tmp_path, PLAIN.replace("\n", line_end).encode(encoding)))


@pytest.mark.parametrize(
    "text",
    [
        "\n" + PLAIN.replace("\n", "\n\n") + " , , \n",  # blank lines
        PLAIN.replace(",", " , "),  # spaces around fields
        PLAIN.replace("path,label,split", "Path,LABEL,Split"),
        PLAIN.replace("val", "Validation").replace("test", "TEST"),
        PLAIN.replace("a/", "a\\").replace("b/", ".\\b\\"),  # written on Windows
        PLAIN.replace("a/", "./b/../a/"),
        "id,label,path,split\n" + "".join(
            f"{number},{','.join(np.array(line.split(','))[[1, 0, 2]])}\n"
            for number, line in enumerate(PLAIN.splitlines()[1:])
        ),
    ],
    ids=["blank", "spaces", "header case", "split names", "backslashes", "dots", "more columns"],
)  # fmt: skip
def test_ways_to_write_the_same(tmp_path: Path, text: str) -> None:
    make_images(tmp_path, *FILES)
    check_plain(read(tmp_path, text))


def test_quoted_fields_and_unicode(tmp_path: Path) -> None:
    make_images(tmp_path, "größe, groß/日本.jpg", "2.jpg", "3.jpg", '4"4.jpg')
    splits = read(
        tmp_path,
        'path,label,split\n"größe, groß/日本.jpg",cafe\u0301,train\n2.jpg,"b, c",train\n'
        '3.jpg,caf\u00e9,val\n"4""4.jpg","b, c",val\n',
    )
    assert splits.classes == ("b, c", "café")
    assert rows(splits.train, splits) == [("größe, groß/日本.jpg", "café"), ("2.jpg", "b, c")]
    assert rows(splits.val, splits) == [("3.jpg", "café"), ('4"4.jpg', "b, c")]


def test_without_a_split_column_val_is_split_off(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(20)]
    make_images(tmp_path, *names)
    table = [f"{name},{'ab'[number % 2]}" for number, name in enumerate(names)]
    splits = read(tmp_path, "path,label\n" + "\n".join(table))
    assert np.bincount(splits.train.labels).tolist() == [8, 8]
    assert np.bincount(splits.val.labels).tolist() == [2, 2]
    backwards = read(tmp_path, "path,label\n" + "\n".join(table[::-1]))
    assert set(rows(backwards.val, backwards)) == set(rows(splits.val, splits))


def test_columns_by_name_and_a_root(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", *FILES)
    text = PLAIN.replace("path,label,split", "file,species,part")
    splits = read(
        tmp_path,
        text,
        root=str(tmp_path / "photos"),
        path_column="file",
        label_column="species",
        split_column="part",
    )
    check_plain(splits)
    assert Path(splits.train.path(0)) == tmp_path / "photos/a/1.jpg"


def test_labels_that_are_numbers_are_in_number_order(tmp_path: Path) -> None:
    make_images(tmp_path, *(f"{number}.jpg" for number in range(6)))
    text = (
        "path,label,split\n0.jpg,10,train\n1.jpg,9,train\n2.jpg,100,train\n3.jpg,9,val\n4.jpg,10,val\n5.jpg,100,val\n"
    )
    splits = read(tmp_path, text)
    assert splits.classes == ("9", "10", "100")
    assert splits.train.labels.tolist() == [1, 0, 2]
    assert splits.val.labels.tolist() == [0, 1, 2]


def test_repeated_rows_count_once(tmp_path: Path) -> None:
    make_images(tmp_path, *FILES)
    splits = read(tmp_path, PLAIN + "./a/1.jpg,ants,train\na/1.jpg,ants,train\n")
    check_plain(splits)
    assert splits.warnings[0] == "2 repeated rows count once: a/1.jpg (line 6), a/1.jpg (line 7)"


def test_absolute_paths_below_root_are_kept_relative(tmp_path: Path) -> None:
    make_images(tmp_path, *FILES)
    check_plain(read(tmp_path, PLAIN.replace("a/", f"{tmp_path}/a/")))


def test_paths_out_of_root_only_by_permission(tmp_path: Path) -> None:
    make_images(tmp_path, "inner/1.jpg", "outer/2.jpg", "outer/3.jpg", "outer/4.jpg")
    text = (
        f"path,label,split\n1.jpg,a,train\n../outer/2.jpg,b,train\n{tmp_path}/outer/3.jpg,a,val\n../outer/4.jpg,b,val\n"
    )
    with pytest.raises(
        ConfigError, match=r"line 3: \.\./outer/2.jpg leads out of the root .*/inner\n.*allow_outside_root"
    ):
        read(tmp_path, text, root=str(tmp_path / "inner"))
    splits = read(tmp_path, text, root=str(tmp_path / "inner"), allow_outside_root=True)
    assert [Path(splits.val.path(row)).resolve() for row in range(2)] == [
        tmp_path / "outer/3.jpg",
        tmp_path / "outer/4.jpg",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,lable,split\n", "data.label_column=label: no such column in .*path, lable, split\n.*label_column=lable"),
        ("a/1.jpg,ants\n", "has no header row: its first row is the image a/1.jpg\n.*path,label"),
        ("1,ants\n", "data.path_column=path: no such column in .*1, ants\n.*a header row is needed"),
        ("", "no such column in .*its header has: none"),
        ("path,label,label\n", "has 2 columns of this name"),
        (PLAIN.replace("val", "4"), "line 4: the split is '4'; allowed are train, val and test\n.*val_values=\\[4\\]"),
        (PLAIN.replace(",val", ","), "line 4: the split is ''"),
        (PLAIN.replace("ants,train", ",train"), "line 2 has no label"),
        (PLAIN.replace("b/3.jpg", ""), "line 4 has no path"),
        (PLAIN.replace("b/3.jpg", "b,3.jpg"), "line 4 has 4 fields, the header 3\n.*needs quotes"),
        (PLAIN + "b/4.jpg,bees,test\n", "b/4.jpg has two labels: ants in line 5, bees in line 6"),
        (PLAIN + "a/1.jpg,ants,val\n", "a/1.jpg has two splits: train in line 2, val in line 6"),
        (PLAIN.replace("bees,train", "ants,train"), "val has images of classes that train has none of: bees"),
        (PLAIN.replace("train", "test"), "has no rows of split train"),
        ("path,label\n", "has no rows of split train"),
        (PLAIN + '"b/4.jpg,ants,test\n', "is no table of columns: unexpected end of data"),
        (PLAIN.encode() + b"\xe9.jpg,ants,train\n", "is not UTF-8 text"),
        (PLAIN + "".join(f"no/{number}.jpg,ants,train\n" for number in range(7)),
         r"7 of 11 files are missing below .*: no/0.jpg \(line 6\), .*no/4.jpg \(line 10\) and more\n"),
        (PLAIN + "a,ants,train\n", r"1 of 5 files are missing below .*: a \(line 6\)\n"),
    ],
)  # fmt: skip
def test_wrong_manifests_name_the_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    make_images(tmp_path, *FILES)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "nowhere.csv"}, "data.file=nowhere.csv: cannot be read: No such file"),
        ({"root": "nowhere"}, "data.root=nowhere: no such folder"),
        ({"delimiter": "::"}, "data.delimiter=::: is not a character that can stand between"),
        ({"split_column": "part"}, "data.split_column=part: no such column"),
    ],
)
def test_wrong_settings(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    make_images(tmp_path, *FILES)
    file = tmp_path / "images.csv"
    file.write_text(PLAIN)
    with pytest.raises(ConfigError, match=message):
        build_csv(CsvConfig(**{"file": str(file), **changes}), reader=lambda path: np.zeros((1, 1, 3), np.uint8))


def test_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path, *FILES)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "images.csv").write_text(PLAIN)
    splits = build_csv(CsvConfig(file="~/images.csv"), reader=lambda path: np.zeros((1, 1, 3), np.uint8))
    check_plain(splits)
    assert Path(splits.train.path(0)) == tmp_path / "a/1.jpg"


# Manifests of other programs

TABLE = [("a/1.jpg", "ants"), ("a/2.jpg", "bees"), ("b/3.jpg", "bees"), ("b/4.jpg", "ants")]


def with_column(name: str, *values: object) -> str:
    rows = [f"{path},{label},{value}" for (path, label), value in zip(TABLE, values, strict=True)]
    return "\n".join([f"path,label,{name}", *rows, ""])


@pytest.mark.parametrize(
    ("column", "values", "changes"),
    [
        ("is_valid", ("False", "False", "True"), {}),
        ("is_valid", ("0", "0", "1"), {}),
        ("is_train", ("TRUE", "TRUE", "FALSE"), {}),
        ("Validation", ("no", "no", "yes"), {}),
        ("fold", ("1", "2", "0"), {"val_values": ["0"], "test_values": ["9"]}),
        ("set", ("training", "training", "dev"), {}),
        ("set", ("Training", "train", "VALID"), {}),
    ],
)
def test_split_columns_of_other_programs(tmp_path, column, values, changes):
    make_images(tmp_path, *FILES)
    last = {"fold": "9", "is_train": "test", "set": "testing"}.get(column, "test")
    splits = read(tmp_path, with_column(column, *values, last), split_column=column, **changes)
    check_plain(splits)


def test_folds_name_the_setting_and_unused_values_are_errors(tmp_path, caplog):
    make_images(tmp_path, *FILES)
    text = with_column("fold", 0, 0, 1, 1)
    with pytest.raises(ConfigError, match=r"line 2: the split is '0'(.|\n)*data.val_values=\[0\]"):
        read(tmp_path, text, split_column="fold")
    with pytest.raises(ConfigError, match=r"data.val_values=.*no row with such a value in column fold"):
        read(tmp_path, text, split_column="fold", val_values=["7"])
    with pytest.raises(ConfigError, match=r"data.val_values: needs data.split_column"):
        read(tmp_path, text, val_values=["1"])
    read(tmp_path, text)
    assert "column fold is not used; data.split_column=fold does" in caplog.text


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "\nsep=;"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_delimiter_line_of_excel(tmp_path, first, encoding):
    make_images(tmp_path, *FILES)
    text = f"{first}\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n")
    if first.startswith("\n") and encoding in ("utf-16-le", "utf-16-be"):
        text = text.lstrip("\n")
    check_plain(read(tmp_path, text.encode(encoding)))


def test_trailing_delimiters_of_spreadsheets(tmp_path):
    make_images(tmp_path, *FILES)
    check_plain(read(tmp_path, PLAIN.replace("train\n", "train,, \n").replace("val\n", "val,\n")))
    with pytest.raises(ConfigError, match=r"line 3 has 2 fields, the header 3\n.*complete the row"):
        read(tmp_path, PLAIN.replace("a/2.jpg,bees,train", "a/2.jpg,bees"))


@pytest.mark.parametrize("disk_form", ["NFC", "NFD"])
@pytest.mark.parametrize("manifest_form", ["NFC", "NFD"])
def test_unicode_forms_of_paths(tmp_path, disk_form, manifest_form):
    names = ["\u00e9t\u00e9/\u00e91.jpg", "\u00e9t\u00e9/2.jpg", "plain/gr\u00fcn.jpg", "plain/4.jpg"]
    make_images(tmp_path, *(unicodedata.normalize(disk_form, name) for name in names))
    text = PLAIN
    for old, new in zip(FILES, names, strict=True):
        text = text.replace(old, unicodedata.normalize(manifest_form, new))
    splits = read(tmp_path, text)
    for source in splits.parts().values():
        assert all(Path(source.path(row)).is_file() for row in range(len(source)))
    assert len(splits.train) == 2


def test_both_forms_of_one_file_count_once(tmp_path):
    make_images(tmp_path, *FILES, "\u00e9.jpg")
    splits = read(tmp_path, PLAIN + "\u00e9.jpg,ants,train\ne\u0301.jpg,ants,train\n")
    assert len(splits.train) == 3 and splits.warnings[0].startswith("1 repeated rows count once")


def test_ids_without_an_ending(tmp_path):
    make_images(tmp_path, *FILES)
    text = PLAIN.replace(".jpg", "").replace("path", "id")
    with pytest.raises(ConfigError, match=r"4 of 4 files are missing(.|\n)*/a/1.jpg is there: set data.path_suffix="):
        read(tmp_path, text, path_column="id")
    check_plain(read(tmp_path, text, path_column="id", path_suffix=".jpg"))
    check_plain(read(tmp_path, PLAIN, path_suffix=".jpg"))  # paths that have it keep it


@pytest.mark.parametrize(
    ("images", "path", "remedy"),
    [
        ("train/1.png", "1", "train/1.png is there: set data.root={root}/train data.path_suffix=.png"),
        ("train/1.png", "1.png", "train/1.png is there: set data.root={root}/train"),
        ("../1.png", "1.png", "1.png is there: set data.root={parent}"),
        ("1.PNG", "1.png", "1.PNG is there: upper and lower case must agree"),
        ("1.png", "1.jpg", "1.png is there, with another ending"),
        ("1.png", "C:\\photos\\1.png", "it is a path on a drive of Windows"),
        ("1.png", "2.png", "paths start from data.root"),
    ],
)
def test_missing_files_name_what_helps(tmp_path, images, path, remedy):
    root = tmp_path / "photos"
    root.mkdir()
    make_images(root, images)
    words = remedy.format(root=root, parent=tmp_path)
    with pytest.raises(ConfigError) as caught:
        read(root, f"path,label\n{path},a\n")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 xlsx", "is a spreadsheet or an archive, not text"),
        (b"\x1f\x8b\x08 gzip", "is a spreadsheet or an archive, not text"),
        ("path,label\nk\u00f6nig.jpg,a\n".encode("latin-1"), "is not UTF-8 text: .*\n.*CSV UTF-8"),
    ],
)
def test_files_that_are_no_manifest(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, content)


def test_pipe_as_manifest_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is not a regular file"):
        build_csv(CsvConfig(file=str(tmp_path / "pipe")), reader=lambda path: np.zeros((1, 1, 3), np.uint8))


ODD = ("blank name (2).jpg", "a=b,c.jpg", "it's @home #1.jpg", '4"4.jpg', "caf\u00e9 \u65e5\u672c.jpg", "100%;x|y.jpg")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_odd_names_in_manifests(tmp_path, delimiter):
    root = tmp_path / "my photos (2024), a=b @x 'q'"
    make_images(root, *ODD)
    lines = io.StringIO()
    table = csv.writer(lines, delimiter=delimiter)
    table.writerows([("path", "label"), *((name, f"class, {number % 2}") for number, name in enumerate(ODD))])
    splits = read(root, lines.getvalue())
    names = [source.name(row) for source in (splits.train, splits.val) for row in range(len(source))]
    assert sorted(names) == sorted(ODD) and splits.classes == ("class, 0", "class, 1")
