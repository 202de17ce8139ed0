"""The local engine: order, workers, faults, pruning, resuming, and what is refused before the first trial."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml

from cvtrain.sweep.pruning import BandPruner, build_pruner
from cvtrain.sweep.sampling import labels, seed_of_trial, suits_gp
from cvtrain.sweep.spec import EarlyTermination, load_spec
from cvtrain.sweep.trial import last_words
from cvtrain.sweep.workers import share_gpus, threads_per_worker

LR = {"optimizer.lr": {"values": [0.1, 0.2, 0.3]}}


def test_a_grid_is_run_once_in_its_order(search, table, starts):
    answer = search({**LR, "trainer.epochs": {"values": [2, 4]}, "data.batch_size": {"value": 8}})
    assert answer.status == 0, answer.err
    rows = table()
    pairs = [(row["optimizer.lr"], row["trainer.epochs"]) for row in rows]
    assert pairs == [("0.1", "2"), ("0.1", "4"), ("0.2", "2"), ("0.2", "4"), ("0.3", "2"), ("0.3", "4")]
    assert [float(row["val/accuracy"]) for row in rows] == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert {row["state"] for row in rows} == {"done"} and {row["data.batch_size"] for row in rows} == {"8"}
    assert starts(5)[0]["optimizer.lr"] == "0.3" and starts(5)[0]["data.batch_size"] == "8"
    assert "best: trial 4, val/accuracy 0.3000" in answer.out
    again = search({**LR, "trainer.epochs": {"values": [2, 4]}, "data.batch_size": {"value": 8}})
    assert again.status == 0 and "nothing is left to run; sweep.name=... starts another study" in again.out
    assert len(table()) == 6 and all(len(starts(number)) == 1 for number in range(6))


def test_a_search_over_a_required_setting(search, starts, tmp_path):
    for folder in ("photos a/ants", "photos a/bees", "b/ants", "b/bees"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.jpg").touch()
    roots = {"data.root": {"values": ["photos a", "b"]}, "optimizer.lr": {"value": 0.1}}
    answer = search(roots, "data=custom")
    assert answer.status == 0, answer.err
    assert [starts(number)[0]["data.root"] for number in (0, 1)] == ["'photos a'", "b"]


def test_lists_nulls_and_words_reach_the_trial(search, starts):
    values = {"model.hidden": {"values": [[], [64, 32]]}, "trainer.ema_decay": {"values": [None]}, **LR}
    assert search({**values, "name": {"values": ["two words"]}}).status == 0
    assert starts(0)[0]["model.hidden"] == "[]" and starts(3)[0]["model.hidden"] == "[64,32]"
    assert starts(0)[0]["trainer.ema_decay"] == "null" and starts(0)[0]["name"] == "'two words'"


def test_failed_trials_are_recorded_and_the_search_goes_on(search, table):
    answer = search({"optimizer.lr": {"value": 0.5}, "seed": {"values": [0, 11, 12, 13, 15, 1]}})
    assert answer.status == 0
    rows = table()
    assert [row["state"] for row in rows] == ["done", "failed", "failed", "failed", "failed", "done"]
    assert rows[1]["message"] == "killed by SIGKILL, as by the system when memory runs out"
    assert rows[2]["message"] == "data.root=photos: no such folder\n  set data.root"
    assert rows[3]["message"] == "ZeroDivisionError: division by zero"
    assert "trial 1 failed: killed by SIGKILL" in answer.out


def test_a_search_whose_first_trials_all_fail_ends(search, table):
    answer = search({"optimizer.lr": {"value": 0.5}, "seed": {"values": [11, 12, 13, 0, 1]}})
    assert answer.status == 1
    assert "the first 3 trials all failed, the last with:\n  ZeroDivisionError" in answer.err
    assert "sweep.max_initial_failures=3 sets how many may" in answer.err
    answer = search(
        {"optimizer.lr": {"value": 0.5}, "seed": {"values": [11, 12, 13, 0, 1]}}, "sweep.max_initial_failures=5"
    )
    assert answer.status == 0
    assert [row["state"] for row in table()] == ["failed", "failed", "failed", "done", "done"]


def test_hyperband_ends_the_worse_trials_at_their_band(search, table):
    values = {"optimizer.lr": {"values": [0.9, 0.1, 0.2, 0.95, 0.3]}, "trainer.epochs": {"value": 6}}
    answer = search(values, early_terminate={"type": "hyperband", "min_iter": 2})
    assert answer.status == 0
    rows = table()
    # At evaluation 2 a trial continues if its value is at least that of rank floor(n / 3) among n.
    assert [row["state"] for row in rows] == ["done", "pruned", "done", "done", "pruned"]
    assert [float(row["val/accuracy"]) for row in rows] == pytest.approx([0.9, 0.1 / 3, 0.2, 0.95, 0.1])
    assert [row["step"] for row in rows] == ["6", "2", "6", "6", "2"]


@pytest.mark.parametrize(
    ("before", "own", "strict", "ends"),
    [
        ([], [0.1, 0.1], False, False),
        ([[0.5, 0.5]], [0.6, 0.1], False, False),
        ([[0.5, 0.5]], [0.6, 0.1], True, True),
        ([[0.5, 0.5]], [0.4, 0.4], False, True),
        ([[0.5, 0.5], [0.7, 0.7]], [0.6, 0.6], False, False),
        ([[0.5, 0.5], [0.7, 0.7]], [0.4, 0.4], False, True),
        ([[0.5], [0.7]], [0.4, 0.4], False, False),
        ([[0.5, 0.5]], [0.4], False, False),
        ([[0.5, 0.5]], [0.4, 0.4, 0.4], False, False),
    ],
)
def test_the_rule_of_a_band(before, own, strict, ends):
    study = optuna.create_study(direction="maximize")
    for values in before:
        other = study.ask()
        for step, value in enumerate(values, 1):
            other.report(value, step)
    trial = study.ask()
    for step, value in enumerate(own, 1):
        trial.report(value, step)
    frozen = study.get_trials()[-1]
    assert BandPruner((2, 6), eta=3, strict=strict).prune(study, frozen) is ends


def test_median_waits_for_trials_and_evaluations():
    pruner = build_pruner(EarlyTermination("median", min_iter=2, min_trials=1))
    study = optuna.create_study(direction="maximize", pruner=pruner)
    first = study.ask()
    for step in (1, 2, 3):
        first.report(0.5, step)
    study.tell(first, 0.5)
    trial = study.ask()
    pruned = []
    for step in (1, 2, 3):
        trial.report(0.1, step)
        pruned.append(trial.should_prune())
    assert pruned == [False, True, True]


def test_random_and_bayes_are_repeatable_and_go_on_where_they_stopped(search, table):
    space = {"optimizer.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 1.0}}
    drawn = {}
    for name, method, steps, seed in (
        ("whole", "bayes", (12,), 0),
        ("parts", "bayes", (5, 12), 0),
        ("chance", "random", (12,), 0),
        ("other", "random", (3,), 1),
    ):
        for trials in steps:
            arguments = (f"sweep.name={name}", f"sweep.trials={trials}", f"sweep.seed={seed}")
            assert search(space, *arguments, method=method).status == 0
        drawn[name] = [row["optimizer.lr"] for row in table(name)]
        assert len(set(drawn[name])) == steps[-1]
    assert drawn["whole"] == drawn["parts"]
    # The first ten trials of a bayes search are drawn by chance too.
    assert drawn["chance"][:10] == drawn["whole"][:10] and drawn["chance"] != drawn["whole"]
    assert not set(drawn["chance"]) & set(drawn["other"])


def test_workers_share_cores_and_trials(search, table, starts, monkeypatch):
    monkeypatch.setattr("cvtrain.config.checks.sweep.usable_cores", lambda: 8)
    monkeypatch.setattr("cvtrain.sweep.local.usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    values = {"optimizer.lr": {"values": [number / 10 for number in range(1, 10)]}}
    started = time.monotonic()
    assert search(values, "sweep.workers=3").status == 0
    assert time.monotonic() - started < 60
    assert sorted(float(row["optimizer.lr"]) for row in table()) == [number / 10 for number in range(1, 10)]
    assert {starts(number)[0]["threads"] for number in range(9)} == {"2"}
    assert {starts(number)[0]["gpus"] for number in range(9)} == {"0", "1", "2"}


def test_shares_of_gpus_and_threads(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert share_gpus(0, 2) == [None, None]
    assert share_gpus(2, 2) == ["0", "1"]
    assert share_gpus(8, 3) == ["0,1", "2,3,4", "5,6,7"]
    assert share_gpus(2, 5) == ["0", "1", "0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-aa,5")
    assert share_gpus(3, 3) == ["3", "GPU-aa", "5"]
    assert [threads_per_worker(workers, 8) for workers in (1, 3, 8, 16)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_per_worker(1, 8) == 2


def test_the_value_of_a_trial_with_folds_is_their_mean(search, table, tmp_path):
    answer = search(LR, "folds=3")
    assert answer.status == 0, answer.err
    rows = table()
    assert [float(row["val/accuracy"]) for row in rows] == pytest.approx([0.11, 0.21, 0.31])
    # Student's t of 2 degrees of freedom, and sqrt(1/3 + 1/2) by Nadeau and Bengio
    assert [float(rows[0][name]) for name in ("std", "low", "high")] == pytest.approx([0.01, 0.0707, 0.1493], abs=5e-5)
    assert "trial 2 done: val/accuracy 0.3100 (95 % interval 0.2707 to 0.3493 over 3 folds)" in answer.out
    assert "best: trial 2, val/accuracy 0.3100 (95 % interval" in answer.out
    assert answer.out.rstrip().splitlines()[-2].endswith("optimizer.lr=0.3 folds=3")
    trial = tmp_path / "runs" / "sweeps" / "search" / "trials" / "0001"
    for fold in range(3):
        (start,) = [json.loads(line) for line in (trial / f"fold{fold}" / "starts.jsonl").read_text().splitlines()]
        assert start["data.fold"].strip("'") == f"{fold}/3"
    other = search(LR, "folds=2")
    assert other.status == 2 and "folds: 3 -> 2" in other.err


def test_a_trial_with_a_fold_that_fails_has_failed(search, table):
    answer = search({"optimizer.lr": {"value": 0.5}, "seed": {"values": [0, 15]}}, "folds=2")
    assert answer.status == 0
    assert [(row["state"], row["val/accuracy"]) for row in table()] == [("done", "0.505"), ("failed", "")]


def test_a_trial_that_was_cut_resumes_with_the_fold_that_was_cut(search, table, tmp_path):
    assert search({"optimizer.lr": {"values": [0.1, 0.2]}}, "folds=3", "sweep.trials=1").status == 0
    folder = tmp_path / "runs" / "sweeps" / "search"
    # as if it had been cut in the middle of fold 1, which a killed search leaves to the next start
    database = sqlite3.connect(folder / "study.db")
    database.execute("UPDATE trials SET state = 'WAITING', datetime_complete = NULL")
    database.execute("DELETE FROM trial_values")
    database.commit()
    database.close()
    for fold in (1, 2):
        (folder / "trials" / "0000" / f"fold{fold}" / "summary.json").unlink()
    assert search({"optimizer.lr": {"values": [0.1, 0.2]}}, "folds=3", "sweep.trials=1").status == 0
    counts = [
        len((folder / "trials" / "0000" / f"fold{fold}" / "starts.jsonl").read_text().splitlines()) for fold in range(3)
    ]
    assert counts == [1, 2, 2]
    assert float(table()[0]["val/accuracy"]) == pytest.approx(0.11)


def test_target_ends_the_search(search, table):
    metric = {"name": "val/accuracy", "goal": "maximize", "target": 0.2}
    answer = search(LR, metric=metric)
    assert answer.status == 0 and "trial 1 has reached the target" in answer.out
    assert len(table()) == 2


REFUSED = [
    (LR, ["folds=3"], {"early_terminate": {"type": "hyperband", "min_iter": 2}}, "cannot be had with early_terminate"),
    (LR, ["folds=3", "data.fold=0/3"], {}, "folds=3: sets data.fold of each run itself"),
    (LR, ["folds=3", "data.val_fraction=0.3"], {}, "data.val_fraction=0.3: has no effect with data.fold=0/3"),
    (LR, ["folds=1"], {}, "folds=1: must be a whole number at least 2"),
    (LR, ["folds=3", "engine=wandb"], {}, "folds=3: has no effect with engine=wandb"),
    ({"optimizer.lr": {"min": 0.1, "max": 0.2}}, [], {"method": "random"}, "would have no end"),
    ({"optimizer.lrr": {"value": 1}}, [], {}, "did you mean optimizer.lr?"),
    (LR, ["sweep.workers=10000"], {}, "is more than this machine's cores"),
    (LR, ["sweep.storage=study.db"], {}, "is no URL of a database"),
    (LR, ["sweep.storage=sqlite:///gone/study.db"], {}, "there is no folder gone"),
    (LR, ["sweep.storage=mysql+gone://me:secret@host/db"], {}, "sweep.storage=mysql+gone://<redacted>@host/db"),
    (
        LR,
        ["sweep.storage=mysql+pymysql://me:secret#?@host/db"],
        {},
        "sweep.storage=mysql+pymysql://<redacted>@host/db: needs",
    ),
    (LR, ["resume=auto"], {}, "resume=auto: is no setting of a search"),
    (LR, ["hydra.run.dir=x"], {}, "is no setting of a search: its trials have folders of their own"),
    (
        LR,
        [],
        {"metric": {"name": "last.val/loss"}},
        "last.val/loss: is an entry of the summary",
    ),
    (LR, ["--multirun"], {}, "a search makes its own runs"),
    (LR, ["sweep.name=a/b"], {}, "sweep.name=a/b: is no folder name"),
    (LR, ["engine=wandb", "sweep.seed=1"], {}, "sweep.seed=1: has no effect with engine=wandb"),
]


@pytest.mark.parametrize(
    ("parameters", "arguments", "content", "said"), REFUSED, ids=[said[:30] for *_, said in REFUSED]
)
def test_what_cannot_run_is_refused_before_the_first_trial(search, tmp_path, parameters, arguments, content, said):
    answer = search(parameters, *arguments, **content)
    assert answer.status == 2 and said in answer.err, answer.err
    assert "secret" not in answer.err
    assert not list(tmp_path.glob("runs/sweeps/*/trials/*"))


def test_another_search_of_the_same_name_is_refused(search, table):
    assert search(LR).status == 0
    answer = search({"optimizer.lr": {"values": [0.1, 0.4]}})
    assert answer.status == 2
    assert answer.err.startswith("error: sweep.name=search: there is a study of this name with another search")
    assert "optimizer.lr: {distribution:categorical,values:[0.1,0.2,0.3]} -> " in answer.err
    assert "data.batch_size: 32 -> 16" in search(LR, "data.batch_size=16").err
    assert search(LR, "data.num_workers=0").status == 0  # how fast, not what
    assert len(table()) == 3


def test_folders_of_a_lost_database_are_refused(search, tmp_path):
    assert search(LR).status == 0
    (tmp_path / "runs" / "sweeps" / "search" / "study.db").unlink()
    answer = search(LR)
    assert answer.status == 2 and "trials that its database does not know: 0000, 0001, 0002" in answer.err


def test_a_damaged_database_is_refused(search, tmp_path):
    folder = tmp_path / "runs" / "sweeps" / "search"
    folder.mkdir(parents=True)
    (folder / "study.db").write_text("no database, but long enough to be read as the header of one" * 20)
    answer = search(LR)
    assert answer.status == 2 and "the database cannot be used: file is not a database" in answer.err


# ---------------------------------------------------------------- interrupted and resumed


def start_search(folder: Path, parameters, *arguments, seconds="0.05") -> subprocess.Popen:
    content = {"method": "grid", "parameters": parameters}
    (folder / "search.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    code = (
        "import sys, fake_trials\n"
        "from cvtrain.cli.main import main\n"
        "fake_trials.use()\n"
        f"sys.argv = ['cvtrain', 'sweep', 'sweep=search.yaml', *{list(arguments)!r}]\n"
        "main()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "FAKE_SECONDS": seconds, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


VALUES = {"optimizer.lr": {"values": [0.1, 0.2, 0.3]}, "trainer.epochs": {"value": 8}}


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), SIGNALS, ids=[number.name for number, _ in SIGNALS])
def test_a_signal_ends_a_search_that_resumes(tmp_path, search, table, starts, number, code):
    process = start_search(tmp_path, VALUES)
    metrics = tmp_path / "runs/sweeps/search/trials/0001/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2)
    os.killpg(process.pid, number)  # as a terminal does, and `timeout`
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code, out
    assert f"{number.name}: trials save and end" in out and "trial 1 is interrupted" in out
    assert "resume it: the same command again" in out
    assert [row["state"] for row in table()] == ["done"]
    assert metrics.read_text().count("\n") < 8
    answer = search(VALUES)
    assert answer.status == 0 and "trial 1 resumes: optimizer.lr=0.2" in answer.out
    assert [(row["state"], row["val/accuracy"]) for row in table()] == [
        ("done", "0.1"),
        ("done", "0.2"),
        ("done", "0.3"),
    ]
    assert [start.get("resume") for start in starts(1)] == [None, "auto"]
    assert [len(starts(number)) for number in (0, 2)] == [1, 1]
    database = sqlite3.connect(tmp_path / "runs/sweeps/search/study.db")
    # each evaluation of the interrupted trial has its own number, those before the signal included
    assert database.execute("select count(*) from trial_intermediate_values").fetchone() == (24,)
    database.close()


def test_sighup_lets_a_real_trial_save(tmp_path):
    (tmp_path / "endless.yaml").write_text("method: grid\nparameters: {optimizer.lr: {values: [0.01]}}\n")
    settings = ["trainer.epochs=1000000", "trainer.precision=fp32", "trainer.progress=false", "model.hidden=[8]"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cvtrain", "sweep", "sweep=endless.yaml", *settings],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    trial = tmp_path / "runs/sweeps/endless/trials/0000"
    metrics = trial / "metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (metrics.exists() and "val/accuracy" in metrics.read_text()), 200)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 129, out
    assert "trial 0 is interrupted; the search resumes it" in out
    assert (trial / "checkpoints" / "last.pt").exists()
    assert "interrupted" in json.loads((trial / "summary.json").read_text())["end_reason"]


def test_a_second_ctrl_c_ends_trials_that_do_not_save(tmp_path, search, table):
    stuck = {"optimizer.lr": {"value": 0.5}, "seed": {"values": [0, 14]}}
    process = start_search(tmp_path, stuck)
    metrics = tmp_path / "runs/sweeps/search/trials/0001/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") == 2)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "SIGINT: trials save" in (tmp_path / "runs/sweeps/search/sweep.log").read_text())
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in out and time.monotonic() - begun < 30, out
    # The same command resumes the trial that was stuck; the first one is kept.
    process = start_search(tmp_path, stuck)
    wait_for(lambda: "trial 1 resumes" in (tmp_path / "runs/sweeps/search/sweep.log").read_text())
    process.kill()
    process.communicate(timeout=60)


def test_a_killed_search_is_continued_and_leaves_no_process(tmp_path, search, table, starts):
    process = start_search(tmp_path, VALUES)
    metrics = tmp_path / "runs/sweeps/search/trials/0000/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: (metrics.parent / "summary.json").exists())
    assert "interrupted" in (metrics.parent / "summary.json").read_text()
    assert search(VALUES).status == 0
    assert [row["state"] for row in table()] == ["done"] * 3
    assert [start.get("resume") for start in starts(0)] == [None, "auto"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no fork server")
def test_a_killed_fork_server_ends_the_search_and_trials_save(tmp_path, search, table):
    process = start_search(tmp_path, VALUES)
    metrics = tmp_path / "runs/sweeps/search/trials/0000/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (server,) = [pid for pid in children if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(server), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "the process that starts trials was killed" in out
    wait_for(lambda: (metrics.parent / "summary.json").exists())
    assert "interrupted" in (metrics.parent / "summary.json").read_text()
    assert search(VALUES).status == 0
    assert [row["state"] for row in table()] == ["done"] * 3


def test_two_searches_share_a_study_and_its_number_of_trials(tmp_path, table):
    values = {"optimizer.lr": {"values": [number / 100 for number in range(1, 13)]}, "trainer.epochs": {"value": 2}}
    first = start_search(tmp_path, values, "sweep.trials=9", seconds="0.02")
    second = start_search(tmp_path, values, "sweep.trials=9", seconds="0.02")
    for process in (first, second):
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
    begun = sorted(tmp_path.glob("runs/sweeps/search/trials/*/starts.jsonl"))
    assert [len(path.read_text().splitlines()) for path in begun] == [1] * 9


# ---------------------------------------------------------------- small parts

NUMBER, CHOICE = {"min": 0.1, "max": 0.9}, {"values": [1, 2, 3]}


@pytest.mark.parametrize(
    ("parameters", "content", "number", "expected"),
    [
        ({"a": NUMBER}, {}, 0, True),
        ({"a": NUMBER}, {}, 199, True),
        ({"a": NUMBER}, {}, 200, False),
        ({"a": NUMBER, "b": CHOICE}, {}, 0, True),
        ({"a": NUMBER, "b": CHOICE, "c": CHOICE}, {}, 0, False),
        ({"a": NUMBER, "b": {"value": 1}, "c": {"values": [2]}}, {}, 0, True),
        ({"a": NUMBER}, {"early_terminate": {"type": "hyperband", "min_iter": 2}}, 0, False),
    ],
)
def test_what_the_sampler_auto_is(tmp_path, parameters, content, number, expected):
    content = {"method": "bayes", "metric": {"name": "val/loss"}, "parameters": parameters, **content}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(content))
    assert suits_gp(load_spec(tmp_path / "search.yaml"), number) is expected


def test_labels_tell_equal_values_apart():
    assert labels([1, 2.5, None, "a"]) == [1, 2.5, None, "a"]
    assert labels([1, True]) == ["1", "true"]
    assert labels([[64], [64, 64]]) == ["[64]", "[64, 64]"]


def test_seeds_differ_by_search_and_trial():
    seeds = {seed_of_trial(seed, number) for seed in range(10) for number in range(100)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch 1\nerror: a=1: wrong\n  set a\nbye\n", "a=1: wrong\n  set a"),
        ("Traceback (most recent call last):\n  File x\n    y\nValueError: no\n", "ValueError: no"),
        ("fine\nlast line\n\n", "last line"),
        ("", ""),
    ],
)
def test_last_words(text, words):
    assert last_words(text) == words
