"""report.html at the end of a run, and the verb `report`."""

import shutil

import pytest
import yaml
from page_checker import check_page
from two_classes import OPTIONS, write_photos

from cvtrain.commands.train import train
from cvtrain.config.changed_settings import changed_settings, restore_config, saved_schema
from cvtrain.report import run_report

REPORTED = [word for word in OPTIONS if word != "plots=false"] + ["plots=false", "report=true"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run on 60 photos, with its page."""
    from cvtrain.config.compose import compose

    root = write_photos(tmp_path_factory.mktemp("photos"))
    for name in ("ant", "bee"):  # some of val are then copies of train
        for file in sorted((root / name).iterdir())[:10]:
            shutil.copy(file, root / name / f"copy{file.name}")
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = [*REPORTED, f"data.root={root}", "optimizer.lr=0.002"]
    train(compose(*words), run_dir=folder, overrides=words)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def test_a_run_ends_with_its_page(run):
    words = check_page((run / "report.html").read_text(encoding="utf-8"))
    assert "of 12 val images are right" in words
    assert "data.on_leakage=drop_val leaves them out of val" in words
    assert "optimizer.lr 0.002 0.001" in words
    assert "data.image_size=16" in words


def test_without_pictures_there_is_no_page_unless_wanted(run, tmp_path, compose_config):
    root = yaml.safe_load((run / "config.yaml").read_text())["data"]["root"]
    train(compose_config(*OPTIONS, f"data.root={root}"), run_dir=tmp_path / "run", overrides=[])
    assert (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_page_that_fails_costs_no_run(run, tmp_path, compose_config, monkeypatch, caplog):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_report, "write_run_page", fail)
    root = yaml.safe_load((run / "config.yaml").read_text())["data"]["root"]
    result = train(compose_config(*REPORTED, f"data.root={root}"), run_dir=tmp_path / "run", overrides=[])
    assert result.exit_code == 0 and (tmp_path / "run" / "summary.json").exists()
    assert "report.html could not be written: OSError: [Errno 28] No space left on device" in caplog.text


def test_the_command_writes_the_same_page(copy, run, cvtrain):
    (copy / "report.html").unlink()
    answer = cvtrain("report", str(copy))
    assert answer.status == 0 and "page: " in answer.out
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert page.replace("copy", "run").count("<img") == (run / "report.html").read_text(encoding="utf-8").count("<img")


def test_two_runs_are_compared(run, copy, tmp_path, cvtrain):
    answer = cvtrain("report", str(run), str(copy), "output=both.html")
    assert answer.status == 0
    assert "are right equally often" in answer.out
    check_page((tmp_path / "both.html").read_text(encoding="utf-8"))


def test_an_evaluation_has_a_page_with_the_images_of_its_run(run, tmp_path, cvtrain):
    checkpoint = f"checkpoint={run / 'checkpoints' / 'best.pt'}"
    assert cvtrain("evaluate", checkpoint, "split=train", "hydra.run.dir=again", "device=cpu").status == 0
    answer = cvtrain("report", "again")
    assert answer.status == 0 and "without pictures" not in answer.out
    assert "of 48 train images are right" in check_page((tmp_path / "again" / "report.html").read_text())


def test_images_that_are_gone_leave_a_page_without_pictures(copy, cvtrain):
    text = (copy / "config.yaml").read_text()
    root = yaml.safe_load(text)["data"]["root"]
    (copy / "config.yaml").write_text(text.replace(root, "gone"))
    answer = cvtrain("report", str(copy))
    assert answer.status == 0 and "without pictures: data.root=gone: no such folder" in answer.out
    assert "<img" not in (copy / "report.html").read_text(encoding="utf-8")


def test_other_files_are_not_replaced(copy, tmp_path, cvtrain):
    (tmp_path / "notes.html").write_text("mine")
    answer = cvtrain("report", str(copy), "output=notes.html")
    assert answer.status == 2 and "is there already, and no page of cvtrain report" in answer.err
    assert (tmp_path / "notes.html").read_text() == "mine"
    assert cvtrain("report", str(copy), "output=page.html").status == 0
    assert cvtrain("report", str(copy), "output=page.html").status == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "error: runs: has to be set"),
        (("nowhere",), "runs=nowhere: no such folder"),
        (("{run}", "{run}"), "is named twice"),
        (("{run}/checkpoints/best.pt",), "is a file, not a run folder"),
        (("{run}", "split=test"), "has no predictions_test.csv"),
        (("{run}", "split=many"), "split=many"),
        (("{run}", "check=nowhere"), "check=nowhere: no such folder"),
        (("{run}", "output=."), "is a folder, not a file"),
        (("{run}", "sperates=1"), "sperates"),
    ],
)
def test_wrong_commands_are_answered(run, cvtrain, words, message):
    answer = cvtrain("report", *(word.format(run=run) for word in words))
    assert answer.status == 2
    assert message in answer.err


def test_a_summary_of_something_else_is_one_line(copy, cvtrain):
    (copy / "summary.json").write_text('{"calibration": 3, "time": []}')
    answer = cvtrain("report", str(copy))
    assert answer.status == 1 and "holds something else than a run writes" in answer.err


def test_saved_settings_are_known_again(compose_config):
    from cvtrain.config.serialize import to_plain

    config = compose_config("data=digits", "optimizer=adam", "optimizer.lr=0.5", "trainer.epochs=3", "loss=bce")
    saved = to_plain(config)
    assert restore_config(saved) == config
    changed = changed_settings(saved)
    assert changed["optimizer.lr"] == (0.5, 0.001)
    assert changed["trainer.epochs"] == (3, 20)
    assert "optimizer.name" not in changed and "seed" not in changed


def test_settings_of_an_earlier_version_are_known_again():
    from cvtrain.config.schema.root import GROUP_SCHEMAS
    from cvtrain.config.serialize import to_plain

    for group, options in GROUP_SCHEMAS.items():
        for name, schema in options.items():
            section = to_plain(schema())
            assert group == "logger" or saved_schema(group, section) is schema, name
            section.pop("image_size", None)
            assert group != "data" or saved_schema(group, section) is schema
