import os
from pathlib import Path

import numpy as np
import pytest

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import IMAGE_EXTENSIONS, CsvConfig, CustomConfig
from cvtrain.data.sources.folder import build_custom
from cvtrain.data.sources.manifest import build_csv
from cvtrain.data.sources.source import ImageSource, Splits


def make_files(root: Path, *names: str) -> None:
    """Empty files: a scan reads names only."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def make_class_folders(root: Path, *folders: str, count: int = 4) -> None:
    make_files(root, *(f"{folder}/{number}.jpg" for folder in folders for number in range(count)))


def scan(root: Path, **changes: object) -> Splits:
    return build_custom(CustomConfig(root=str(root), **changes), reader=lambda path: np.zeros((1, 1, 3), np.uint8))


def contents(source: ImageSource, classes: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(source.name(row), classes[source.labels[row]]) for row in range(len(source))]


def names_of(splits: Splits) -> list[str]:
    return sorted(part.name(row) for part in splits.parts().values() for row in range(len(part)))


def test_split_folders_share_one_class_map(tmp_path: Path) -> None:
    make_files(
        tmp_path, "train/b/1.jpg", "train/a/2.jpg", "train/c/3.jpg", "val/c/4.jpg", "val/b/5.jpg", "test/c/6.jpg"
    )
    splits = scan(tmp_path)
    assert splits.classes == ("a", "b", "c")
    assert contents(splits.train, splits.classes) == [
        ("train/a/2.jpg", "a"),
        ("train/b/1.jpg", "b"),
        ("train/c/3.jpg", "c"),
    ]
    assert contents(splits.val, splits.classes) == [("val/b/5.jpg", "b"), ("val/c/4.jpg", "c")]
    assert splits.test is not None
    assert contents(splits.test, splits.classes) == [("test/c/6.jpg", "c")]
    assert splits.train.labels.dtype == np.int64
    assert splits.warnings == ("classes without images in val: a", "classes without images in test: a, b")


@pytest.mark.parametrize(("train", "val"), [("train", "valid"), ("Train", "Validation"), ("TRAINING", "val")])
def test_other_names_of_the_splits(tmp_path: Path, train: str, val: str) -> None:
    make_class_folders(tmp_path, f"{train}/a", f"{train}/b")
    make_class_folders(tmp_path, f"{val}/a", f"{val}/b", count=2)
    splits = scan(tmp_path)
    assert (len(splits.train), len(splits.val), splits.test) == (8, 4, None)


def test_class_folders_alone_are_split_by_class(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "a", "b", count=10)
    splits = scan(tmp_path, val_fraction=0.3)
    assert np.bincount(splits.train.labels).tolist() == [7, 7]
    assert np.bincount(splits.val.labels).tolist() == [3, 3]
    assert names_of(splits) == sorted(f"{name}/{number}.jpg" for name in "ab" for number in range(10))
    again, other = scan(tmp_path, val_fraction=0.3), scan(tmp_path, val_fraction=0.3, split_seed=1)
    assert contents(again.val, again.classes) == contents(splits.val, splits.classes)
    assert contents(other.val, other.classes) != contents(splits.val, splits.classes)


def test_train_without_val_is_split_and_test_is_kept(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "train/a", "train/b", "test/a", "test/b", count=5)
    splits = scan(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test or ())) == (8, 2, 10)
    assert splits.notes == ("val is a stratified 0.2 of train (data.val_fraction, data.split_seed=0)",)


def test_extensions_in_any_case_nested_folders_and_what_is_left_out(tmp_path: Path) -> None:
    make_files(
        tmp_path,
        *("train/a/1.JPG", "train/a/2.Jpeg", "train/a/deep/er/3.png", "train/a/notes.txt", "train/a/4.gif"),
        *("train/a/.5.jpg", "train/.thumbs/6.jpg", "train/b/7.tiff", "train/b/.ipynb_checkpoints/8.jpg"),
        *(
            "train/loose.jpg",
            "readme.md",
            "cover.png",
            "__MACOSX/train/a/9.jpg",
            "extra/x.jpg",
            "val/a/1.jpg",
            "val/b/1.jpg",
        ),
    )
    splits = scan(tmp_path)
    assert names_of(splits) == sorted(
        ["train/a/1.JPG", "train/a/2.Jpeg", "train/a/deep/er/3.png", "train/b/7.tiff", "val/a/1.jpg", "val/b/1.jpg"]
    )
    assert splits.left_out == (
        "left out 1 (folder beside the splits): extra",
        "left out 4 (hidden): __MACOSX, train/.thumbs, train/a/.5.jpg and 1 more",
        "left out 2 (image outside the class folders): cover.png, train/loose.jpg",
        "left out 3 (not an image by its extension): readme.md, train/a/4.gif, train/a/notes.txt",
    )


def test_order_is_by_name_whatever_the_file_system_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, *(f"train/{name}/{number}.jpg" for name in "ab" for number in (10, 9, 1)))
    make_class_folders(tmp_path, "val/a", "val/b")
    plain = contents(scan(tmp_path).train, ("a", "b"))
    real = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            with real(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *exception: object) -> None: ...

    monkeypatch.setattr("cvtrain.data.sources.scan.os.scandir", Reversed)
    assert contents(scan(tmp_path).train, ("a", "b")) == plain
    assert [name for name, _ in plain][:3] == ["train/a/1.jpg", "train/a/10.jpg", "train/a/9.jpg"]


def test_unicode_names_match_across_splits_in_either_form(tmp_path: Path) -> None:
    make_files(tmp_path, "train/caf\u00e9/1.jpg", "train/日本/2.jpg", "val/cafe\u0301/3.jpg", "val/日本/größe.jpg")
    splits = scan(tmp_path)
    assert splits.classes == ("café", "日本")
    assert splits.val.labels.tolist() == [0, 1]
    assert splits.val.name(1) == "val/日本/größe.jpg"


def test_class_folder_whose_name_is_no_utf8_gets_a_printable_name(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "a")
    folder = os.fsencode(tmp_path) + b"/\xff"
    try:
        os.mkdir(folder)  # noqa: PTH102
    except OSError:
        pytest.skip("this file system refuses such names")
    for number in range(4):
        Path(os.fsdecode(folder + b"/%d.jpg" % number)).touch()
    splits = scan(tmp_path)
    assert splits.classes == ("\\udcff", "a")
    last = splits.train.labels.tolist().index(0)
    assert Path(splits.train.path(last)).exists()


def test_class_folders_of_numbers_are_in_number_order(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "0", "1", "2", "10")
    assert scan(tmp_path).classes == ("0", "1", "2", "10")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "root/train/a", "root/val/a", "root/val/b")
    make_class_folders(tmp_path, "elsewhere/b", count=2)
    (tmp_path / "root/train/b").symlink_to(tmp_path / "elsewhere/b")
    (tmp_path / "root/train/a/again").symlink_to(tmp_path / "root/train/a")
    (tmp_path / "root/train/a/gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "root/train/a/self.jpg").symlink_to("self.jpg")
    (tmp_path / "root/train/a/one.jpg").symlink_to(tmp_path / "elsewhere/b/0.jpg")
    splits = scan(tmp_path / "root")
    assert np.bincount(splits.train.labels).tolist() == [5, 2]
    assert splits.left_out == (
        "left out 2 (broken link or no regular file): train/a/gone.jpg, train/a/self.jpg",
        "left out 1 (link to a folder that it is in): train/a/again",
    )


def test_empty_class_folders_are_left_out_by_name(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "train/a", "train/b", "val/a", "val/b")
    (tmp_path / "train/empty").mkdir()
    (tmp_path / "val/hollow").mkdir()
    splits = scan(tmp_path)
    assert splits.classes == ("a", "b")
    assert splits.warnings == ("class folders without images are left out: empty",)


def test_images_in_val_of_a_class_that_is_empty_in_train_are_an_error(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "train/a", "train/b", "val/a", "val/empty", "val/wasps")
    (tmp_path / "train/empty").mkdir()
    with pytest.raises(ConfigError, match="val has images of classes that train has none of: empty, wasps"):
        scan(tmp_path)


def test_own_extensions_with_or_without_dot(tmp_path: Path) -> None:
    make_files(tmp_path, *(f"{name}/{number}.GIF" for name in "ab" for number in range(2)), "a/x.jpg")
    assert len(names_of(scan(tmp_path, extensions=["gif"]))) == 4
    assert len(names_of(scan(tmp_path, extensions=[".gif", ".jpg"]))) == 5


def test_default_extensions_are_torchvisions() -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert IMAGE_EXTENSIONS == IMG_EXTENSIONS


def test_agrees_with_torchvisions_image_folder(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    make_files(tmp_path, "train/Z/1.jpg", "train/a/b/2.png", "train/a/3.JPG", "train/a/4.txt", "train/_/5.bmp")
    make_class_folders(tmp_path, "val/a", "val/Z", "val/_")
    theirs = ImageFolder(str(tmp_path / "train"))
    splits = scan(tmp_path)
    assert list(splits.classes) == theirs.classes
    assert sorted(
        zip((splits.train.path(row) for row in range(4)), splits.train.labels.tolist(), strict=True)
    ) == sorted(theirs.samples)


def test_train_can_be_a_class_among_class_folders(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "bus", "car", "train")
    splits = scan(tmp_path)
    assert splits.classes == ("bus", "car", "train")
    assert "taken as a class" in splits.notes[0]


def test_test_folder_without_labels_is_left_out(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "train/a", "train/b", "val/a", "val/b", "test")
    splits = scan(tmp_path)
    assert splits.test is None
    assert splits.warnings == ("test/ has images but no class folders, so no labels: there is nothing to score",)


def test_folder_beside_the_splits_may_hold_images(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "train/a", "train/b", "val/a", "val/b", "unlabelled")
    splits = scan(tmp_path)
    assert splits.classes == ("a", "b")
    assert splits.left_out == ("left out 1 (folder beside the splits): unlabelled",)


def test_train_folder_given_as_root_is_warned_of(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "train/a", "train/b", "val/a", "val/b")
    assert scan(tmp_path / "train").warnings == (
        f"the root is itself called train, and val beside it is not used: data.root={tmp_path} takes both",
    )


@pytest.mark.parametrize(
    ("folders", "root", "message"),
    [
        (["train/a", "train/b", "val/a", "valid/b"], "", "both val/ and valid/ could be the val split"),
        (["val/a", "val/b"], "", "found val/ but no train/"),
        (["a", "b", "test"], "", "found test/ but no train/(.|\n)*; a, b would go into train/"),
        (["train"], "", "train/ holds 4 images, but no class folders(.|\n)*data=csv"),
        (["train", "val/a"], "", "train/ holds 4 images, but no class folders"),
        (["train/a", "train/b", "val"], "", "val/ holds 4 images but no class folders"),
        (["bus", "car", "train/steam"], "", "cannot tell whether train/ is a split or a class(.|\n)*bus, car"),
        (["set/train/a", "set/train/b"], "", "one level too high\n.*did you mean data.root=.*/set\\?"),
        (["one/train/a", "one/test/a", "two/train/a"], "", "one/ has a train/ of its own"),
        (["set/a", "set/b"], "", "one folder only, set/(.|\n)*did you mean data.root=.*/set\\?"),
        (["x/train/a", "x/train/b"], "x/train/a", "the folder of one class\n.*did you mean data.root=.*/x\\?"),
        (["x/a", "x/b"], "x/a", "the folder of one class\n.*did you mean data.root=.*/x\\?"),
        (["x/a"], "y", "no such folder\n.*relative paths start from"),
        (["x/a"], "x/a/0.jpg", "is a file, not a folder\n.*unpack"),
    ],
)
def test_wrong_layouts_say_what_to_do(tmp_path: Path, folders: list[str], root: str, message: str) -> None:
    make_class_folders(tmp_path, *folders)
    with pytest.raises(ConfigError, match=message) as caught:
        scan(tmp_path / root)
    assert caught.value.problems[0].key == "data.root"


def test_empty_roots_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folders and no images here \(images end in .jpg, "):
        scan(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError, match="no images"):
        scan(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ConfigError, match="train/ holds neither images nor folders"):
        scan(tmp_path)


def test_classes_that_differ_by_case_or_blanks_are_warned_of(tmp_path):
    make_class_folders(tmp_path, "Ants", "ants", "big cat", "bigcat", "dog")
    words = "classes whose names differ only by case or blanks count as different ones: 'Ants' / 'ants', "
    splits = scan(tmp_path)
    assert splits.warnings == (f"{words}'big cat' / 'bigcat'",)
    table = [
        f"{source.name(row)},{splits.classes[source.labels[row]]}"
        for source in (splits.train, splits.val)
        for row in range(len(source))
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *table]))
    manifest = build_csv(CsvConfig(file=str(tmp_path / "labels.csv")), lambda path: np.zeros((1, 1, 3), np.uint8))
    assert manifest.warnings == splits.warnings


def test_odd_names_of_folders_and_files(tmp_path):
    root = tmp_path / "my photos (2024), a=b @x 'q' \u00e9"
    odd = ("a (1)", "b=c, d", "it's @home", "\u65e5\u672c #1", 'qu"ote')
    make_files(root, *(f"{name}/{name} {number}.jpg" for name in odd for number in range(4)))
    splits = scan(root)
    assert set(splits.classes) == set(odd) and len(names_of(splits)) == 20
    assert all(Path(splits.train.path(row)).is_file() for row in range(len(splits.train)))


def test_unreadable_folder_is_one_line(tmp_path, monkeypatch):
    make_class_folders(tmp_path, "a", "b")
    real = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("cvtrain.data.sources.scan.os.scandir", refuse)
    with pytest.raises(ConfigError, match=r"cannot be read: .*Permission denied: .*/b"):
        scan(tmp_path)
