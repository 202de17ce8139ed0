"""`check` as a command: what it finds, writes and returns, and the way from its list to the next run."""

import csv
import json

import pytest
from made_sets import encoded, picture, write

from cvtrain.cli.main import EXIT_OK, EXIT_WRONG_COMMAND, run
from cvtrain.cli.verbs import EXIT_FINDINGS
from cvtrain.commands.check import check
from cvtrain.config.compose import compose, compose_verb
from cvtrain.config.errors import ConfigError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes in train and val; one image of val is a mirrored photo of train, one file is cut."""
    from PIL import Image

    files = {f"train/{name}/{n}.jpg": encoded(picture(100 * k + n)) for k, name in enumerate("ab") for n in range(12)}
    files |= {f"val/{name}/{n}.jpg": encoded(picture(100 * k + 50 + n)) for k, name in enumerate("ab") for n in (0, 1)}
    files["val/a/mirror.jpg"] = encoded(picture(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    files["train/b/cut.jpg"] = files["train/b/0.jpg"][:500]
    return write(tmp_path_factory.mktemp("photos"), files)


@pytest.fixture
def command(photos, tmp_path, monkeypatch, capsys):
    """`command("key=value", ...)` runs the verb on the photos and returns exit code and output."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        try:
            code = run(["check", *words])
        except SystemExit as request:
            code = request.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def newest(folder):
    return sorted((folder / "runs" / "check" / "custom").iterdir())[-1]


def test_findings_and_the_way_to_a_clean_set(photos, tmp_path, command):
    code, output = command("data=custom", f"data.root={photos}", "data.num_workers=0")
    assert code == EXIT_FINDINGS
    lines = output.splitlines()
    assert any(line.split()[:3] == ["error", "1", "leakage"] for line in lines)
    assert any(line.split()[:3] == ["error", "1", "unreadable"] for line in lines)
    assert "val/a/mirror.jpg = train/a/3.jpg (near copy, turned or mirrored, in train)" in output
    folder = newest(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("check.html", "check.json", "check.log", "findings.csv", "quarantine.csv"),
    ]
    summary = json.loads((folder / "check.json").read_text(encoding="utf-8"))
    assert (summary["errors"], summary["quarantined"], summary["images"]) == (2, 2, {"train": 25, "val": 5})
    with (folder / "quarantine.csv").open(encoding="utf-8") as file:
        quarantined = list(csv.DictReader(file))
    assert [row["path"] for row in quarantined] == ["train/b/cut.jpg", "val/a/mirror.jpg"]
    exclude = f"data.exclude={(folder / 'quarantine.csv').relative_to(tmp_path)}"
    assert f"cvtrain data=custom data.root={photos} data.num_workers=0 {exclude}" in " ".join(output.split())
    code, output = command("data=custom", f"data.root={photos}", "data.num_workers=0", exclude)
    assert (code, "leakage" in output, "left out 2 (data.exclude)" in output) == (EXIT_OK, False, True)


def test_sets_without_files_are_checked(command):
    code, output = command()
    assert code == EXIT_OK
    assert "1,438 train, 359 val images, 10 classes" in output


def test_result_from_python(photos, tmp_path):
    config = compose_verb("check", ["data=custom", f"data.root={photos}", "data.num_workers=0"])[0]
    result = check(config, run_dir=tmp_path)
    assert (result.num_errors, len(result.images)) == (2, 30)
    assert [result.images.name(index) for index in result.quarantined] == ["train/b/cut.jpg", "val/a/mirror.jpg"]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("data=custom", "data.root=nowhere"), "no such folder"),
        (("data=custom",), "has to be set"),
        (("data=custom", "data.root={photos}", "data.exclude=none.csv"), "no such file"),
        (("data=custom", "data.root={photos}", "data.exclude={photos}"), "is a folder"),
        (("data=custom", "data.root={photos}", "augment=strong"), "has no effect"),
        (("data=custom", "data.root={photos}", "data.num_workers=many"), "must be a whole number"),
        (("dta=custom",), "data=custom"),
        (("data=csv", "data.file={photos}"), "is a folder"),
        (("trainer.epochs=3",), "trainer.epochs"),
        (("photos",), "data.root"),
    ],
)
def test_wrong_commands_are_answered(photos, command, words, answer):
    code, output = command(*(word.format(photos=photos) for word in words))
    assert code == EXIT_WRONG_COMMAND
    assert answer in output


def test_training_takes_the_list(photos, tmp_path):
    file = write(tmp_path, {"list.csv": b"path\nval/a/mirror.jpg\n"}) / "list.csv"
    assert compose("data=custom", f"data.root={photos}", f"data.exclude={file}").data.exclude == str(file)
    with pytest.raises(ConfigError, match="no such file"):
        compose("data=custom", f"data.root={photos}", "data.exclude=none.csv")


def test_labels_are_checked_with_weights(photos, tmp_path, command):
    """A network with random weights stands for a pretrained one: its features of patches of colour tell them apart."""
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=1000).state_dict(), tmp_path / "weights.pth")
    words = ("data=custom", f"data.root={photos}", "data.num_workers=0", "data.image_size=32", "device=cpu")
    code, output = command(*words, "model=resnet18", f"model.weights={tmp_path / 'weights.pth'}")
    assert code == EXIT_FINDINGS
    assert "leakage" in output
    with (newest(tmp_path) / "findings.csv").open(encoding="utf-8") as file:
        suspects = [row for row in csv.DictReader(file) if row["check"] == "label_suspect"]
    assert all(row["partner_class"] in ("a", "b") and row["partner_class"] != row["class"] for row in suspects)
    assert "train/b/cut.jpg" not in {row["path"] for row in suspects}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("model=resnet18",), "has no effect without model.weights"),
        (("device=cpu",), "has no effect without model.weights"),
        (("model=resnet18", "model.weights=none.pth"), "no such file"),
        (("model=resnet18", "model.weights=IMAGENET1K_V1", "device=gpu"), "must be auto"),
    ],
)
def test_wrong_weights_are_answered(photos, command, words, answer):
    code, output = command("data=custom", f"data.root={photos}", *words)
    assert code == EXIT_WRONG_COMMAND
    assert answer in output
