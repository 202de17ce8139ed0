"""The run folder: never shared or overwritten; what cannot be written there is one line and an exit status."""

import json
import shutil

import pytest
from PIL import Image

import cvtrain as cvtrain_package
from cvtrain.checkpoint import load_checkpoint
from cvtrain.commands.train import train
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.training.trainer import Trainer

TINY = (
    "data=digits",
    "model.hidden=[8]",
    "plots=false",
    "data.num_workers=0",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.epochs=2",
    "trainer.limit_train_batches=2",
    "trainer.progress=false",
)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_second_command_in_a_run_folder_is_refused(cvtrain, tmp_path):
    assert cvtrain(*TINY, "hydra.run.dir=run").status == 0
    before = contents(tmp_path / "run")
    answer = cvtrain(*TINY, "seed=2", "hydra.run.dir=run")
    assert answer.status == 2
    assert answer.err.startswith("error: hydra.run.dir=run: holds a run already")
    assert "resume=run resumes it" in answer.err and "delete this one" in answer.err
    answer = cvtrain("evaluate", "checkpoint=run/checkpoints/best.pt", "hydra.run.dir=run")
    assert answer.status == 2 and "holds a run already" in answer.err
    assert contents(tmp_path / "run") == before
    assert cvtrain(*TINY, "hydra.run.dir=run", "resume=auto", "trainer.epochs=3").status == 0


def test_python_is_refused_the_same_folder_too(compose_config, tmp_path):
    train(compose_config(*TINY), run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already"):
        train(compose_config(*TINY), run_dir=tmp_path / "run")


def test_second_sweep_in_a_sweep_folder_is_refused(cvtrain, tmp_path):
    sweep = ("--multirun", *TINY, "seed=1,2", "hydra.sweep.dir=sweep")
    assert cvtrain(*sweep).status == 0
    before = contents(tmp_path / "sweep")
    answer = cvtrain(*sweep)
    assert answer.status == 2
    assert "hydra.sweep.dir=sweep: holds a sweep already" in answer.err and "resume=auto" in answer.err
    assert contents(tmp_path / "sweep") == before
    assert cvtrain(*sweep, "resume=auto").status == 0


def test_sweeps_of_the_same_second_get_folders_of_their_own(cvtrain, tmp_path, monkeypatch):
    import cvtrain.config.resolvers as resolvers

    class Stopped(resolvers.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 31, 12, 0, 0)

    monkeypatch.setattr(resolvers, "datetime", Stopped)
    for _ in range(2):
        assert cvtrain("--multirun", *TINY, "seed=1", "trainer.epochs=1").status == 0
    folders = sorted(path.name for path in (tmp_path / "runs" / "multirun").iterdir())
    assert folders == ["2026-01-31_12-00-00", "2026-01-31_12-00-00_2"]


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("hydra.run.dir=file/run", "nothing can be written there: "),
        ("output_root=/proc/none", "no run folder can be made"),
    ],
)
def test_a_run_folder_that_cannot_be_made_is_one_line(cvtrain, tmp_path, setting, rule):
    (tmp_path / "file").touch()
    answer = cvtrain(*TINY, setting)
    assert answer.status == 2
    assert answer.err.startswith(f"error: {setting}: {rule}")
    assert len(answer.err.splitlines()) <= 3


def test_checkpoints_that_can_never_be_written_end_with_status_1(cvtrain, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()  # a file where the folder has to be
    answer = cvtrain(*TINY, "hydra.run.dir=run", "trainer.monitor=val/loss")
    assert answer.status == 1
    (line,) = answer.err.splitlines()
    assert (
        line.startswith("error: the newest checkpoint is not on disk: ") and "could not be saved: File exists" in line
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["end_reason"] == "all epochs done" and summary["steps"] == 4
    assert "File exists" in summary["checkpoint_error"]
    assert (tmp_path / "run" / "predictions_val.csv").exists()
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.index("could not be saved") < log.index(" 2/2 ")  # at the first failure, not at the end


def test_summary_has_no_checkpoint_error_when_all_is_saved(compose_config, tmp_path):
    train(compose_config(*TINY), run_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["checkpoint_error"] is None


def test_a_report_that_cannot_be_written_keeps_the_checkpoint(compose_config, tmp_path, monkeypatch):
    def full_disk(*arguments, **options):
        raise OSError(28, "No space left on device", str(tmp_path / "run" / "predictions_val.csv"))

    monkeypatch.setattr("cvtrain.commands.train.write_report", full_disk)
    with pytest.raises(RunError) as caught:
        train(compose_config(*TINY), run_dir=tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("the report could not be written: ") and lines[0].endswith("No space left on device")
    assert lines[1] == "  the checkpoint is saved"
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["position"]["step"] == 4


def test_a_run_folder_deleted_in_the_middle_ends_with_one_line(cvtrain, tmp_path, monkeypatch):
    plain = Trainer.evaluate

    def evaluate(self):
        shutil.rmtree(self.run_dir, ignore_errors=True)
        return plain(self)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    answer = cvtrain(*TINY, "hydra.run.dir=run")
    assert answer.status == 1
    (line,) = answer.err.splitlines()
    assert line.endswith("was deleted while the run was going on: what it held is lost, and no report is written")


def write_photos(root):
    for name in ("ants", "bees"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "1.png")


REFUSED = {
    "evaluate of no checkpoint": ("evaluate", "checkpoint=photos/ants/1.png"),
    "evaluate of other data": ("evaluate", "checkpoint=run/checkpoints/best.pt", "split=test", "data.root=photos"),
    "train with a wrong setting": (*TINY, "data.image_sise=8"),
    "train on one image per class": (*TINY[1:], "model=mlp", "data=custom", "data.root=photos"),
    "resume of a damaged checkpoint": (*TINY, "resume=photos/ants/1.png"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_command_leaves_no_run_folder(cvtrain, tmp_path, case):
    write_photos(tmp_path / "photos")
    if "checkpoint=run/checkpoints/best.pt" in REFUSED[case]:
        assert cvtrain(*TINY, "hydra.run.dir=run").status == 0
    before = {path for path in tmp_path.rglob("*") if path != tmp_path / "runs"}
    for place in ((), ("hydra.run.dir=given",)):
        answer = cvtrain(*REFUSED[case], *place)
        assert answer.status == 2, answer.err
        assert set(tmp_path.rglob("*")) == before, answer


def test_refused_command_keeps_a_folder_that_had_files(cvtrain, tmp_path):
    write_photos(tmp_path / "photos")
    answer = cvtrain("evaluate", "checkpoint=photos/ants/1.png", "hydra.run.dir=photos")
    assert answer.status == 2 and (tmp_path / "photos/ants/1.png").exists()


@pytest.mark.parametrize("call", [cvtrain_package.evaluate, lambda path: cvtrain_package.train(f"resume={path}")])
def test_refused_call_from_python_leaves_no_run_folder(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    with pytest.raises(ConfigError):
        call("photos/ants/1.png")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
