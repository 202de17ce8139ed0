"""What README.md and docs/ claim: commands work, files, links and tables are right, and examples run as they stand."""

import ast
import csv
import json
import re
import shlex
import signal
from pathlib import Path
from urllib.parse import unquote

import pytest
from layers import LAYERS
from PIL import Image

from cvtrain.cli import main as cli
from cvtrain.cli.main import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_WRONG_COMMAND
from cvtrain.cli.verbs import EXIT_FINDINGS
from cvtrain.config.composer import conf_dir

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
OUTPUTS = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks of a page, indented ones included."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [(language, re.sub(rf"^{indent}", "", content, flags=re.MULTILINE)) for indent, language, content in found]


def commands(text: str) -> list[str]:
    """The commands of a page: lines of blocks that begin with cvtrain, with a prompt or not, and those in backticks."""
    found = []
    for _, content in blocks(text):
        lines = content.replace("\\\n", " ").splitlines()
        found += [match[1] for line in lines if (match := re.match(r"(?:\$ )?(cvtrain(?: (?!\d).*)?)$", line))]
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return found + re.findall(r"`(cvtrain [^`]+)`", prose)


def code(page: str, file: str) -> str:
    """The block of a page that begins with the comment `# file`."""
    return next(content for _, content in blocks(page) if content.startswith(f"# {file}\n"))


def table_rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table whose first line begins with `head`."""
    body = text[text.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder with all that the commands name: photos, a manifest's worth of folders, a run, files of the user's."""
    for name in ("photos", "other_photos", "new_photos", "hymenoptera_data", "birds"):
        for split in ("train", "val"):
            for number, kind in enumerate(("owl", "robin")):
                folder = tmp_path / name / split / kind
                folder.mkdir(parents=True)
                for index in range(4):
                    Image.new("RGB", (12, 12), (number * 200, index * 40, 90)).save(folder / f"{index}.png")
    (tmp_path / "lite0.pth").touch()
    for page, file in ((EXTENDING, "my_package/nets.py"), (EXTENDING, "my_package/data.py")):
        write(tmp_path / file, code(page, file))
    for file in ("my_conf/model/mynet.yaml", "my_conf/experiment/mine.yaml"):
        write(tmp_path / file, code(EXTENDING, file).partition("\n")[2])
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_named_runs(home: Path, command: str) -> None:
    """The checkpoint or run folder that a command names."""
    for key, path in re.findall(r"(checkpoint|resume)=(\S*/\S*)", command):
        folder = home / (Path(path).parent.parent if key == "checkpoint" else path)
        write(folder / "checkpoints" / "best.pt", "")
        write(folder / "overrides.yaml", "[]\n")


PAGE_COMMANDS = sorted({*commands(README), *commands(EXTENDING)})


@pytest.mark.parametrize("command", PAGE_COMMANDS)
def test_commands_are_right(cvtrain, home, monkeypatch, command):
    for verb in cli.VERBS:
        monkeypatch.setitem(cli.VERBS, verb, lambda config, run_dir, overrides: None)
    make_named_runs(home, command)
    wrong = dict(re.findall(r"^\$ (cvtrain[^\n]*)\n(error: .*?)\(exit 2\)$", README, re.MULTILINE | re.DOTALL))
    answer = cvtrain(*shlex.split(command)[1:])
    assert (answer.status, answer.err) == ((2, wrong[command]) if command in wrong else (0, ""))


def test_there_are_commands_to_check():
    assert len(PAGE_COMMANDS) >= 15


def test_set_up_is_what_ci_does():
    setup = next(content for _, content in blocks(README) if "pytest" in content).split("\n")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert setup == ["uv run cvtrain", "uv run --extra test pytest", ""]
    assert set(setup) - {""} <= set(script)


def test_groups_and_options_are_those_of_conf():
    listed = {words(group)[0]: options.split() for group, options in table_rows(README, "group")}
    assert listed == {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in conf_dir().iterdir()
        if folder.is_dir() and folder.name != "hydra"
    }


def test_exit_codes():
    listed = [int(code) for code, _ in table_rows(README, "exit code")]
    names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU")
    signals = [128 + getattr(signal, name) for name in names]
    assert signals[0] == EXIT_INTERRUPTED
    assert listed == [EXIT_OK, EXIT_FAILED, EXIT_WRONG_COMMAND, EXIT_FINDINGS, *signals]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_readme_links_every_page():
    linked = set(re.findall(r"\]\(docs/([^)#]+\.md)", README))
    assert linked == {page.name for page in PAGES} - {"README.md"}


def test_layers_are_those_that_are_tested():
    rows = table_rows(ARCHITECTURE, "layer")
    named = [
        {re.sub(r"(\.py|/)$", "", name) for name in words(files)}
        for _, files, _ in sorted(rows, key=lambda row: int(row[0]))
    ]
    assert named == [set(parts) for parts in LAYERS]


@pytest.mark.parametrize("page", [ARCHITECTURE, EXTENDING, README], ids=["architecture", "extending", "README"])
def test_files_that_are_named_exist(page):
    prose = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)
    names = {word for word in words(prose) if re.fullmatch(r"[\w./]+(\.py|\.md|/)", word)}
    placeholders = {name for name in names if re.search(r"(^|/)x\.py$|^photos/|^conf/optimizer/asgd", name)}
    missing = {
        name for name in names - placeholders if not (ROOT / name).exists() and not (ROOT / "cvtrain" / name).exists()
    }
    assert not missing


def test_python_examples_are_python():
    for page in PAGES:
        for language, content in blocks(page.read_text(encoding="utf-8")):
            if language == "python":
                ast.parse(content)


@pytest.fixture
def finished_run(cvtrain, home) -> Path:
    """A run of the examples of docs/extending.md, with every split; then an evaluation of it."""
    options = (
        "data.image_size=8 data.batch_size=4 data.num_workers=0 trainer.epochs=2 trainer.log_every_steps=1 name=mine"
    )
    splits = " ".join(f"data.{split}_kwargs.split={folder}" for split, folder in EXAMPLE_SPLITS.items())
    example = f"data=dataset data.target=my_package.data.Birds data.kwargs.root=birds {splits}"
    network = "model=custom model.target=my_package.nets.MyNet model.kwargs.width=4"
    trained = cvtrain(*f"{example} {network} {options} trainer.device=cpu trainer.precision=fp32".split())
    assert trained.status == 0, trained.err
    (folder,) = (home / "runs" / "mine").iterdir()
    targets = "model.target=my_package.nets.MyNet data.target=my_package.data.Birds"
    scored = cvtrain("evaluate", f"checkpoint={folder}/checkpoints/best.pt", *targets.split())
    assert scored.status == 0, scored.err
    return folder


EXAMPLE_SPLITS = {"train": "train", "val": "val", "test": "val"}


def test_examples_run_and_leave_what_the_page_lists(finished_run, home):
    listed = set(re.findall(r"`([^`\n]+)`", OUTPUTS))
    (evaluation,) = (home / "runs" / "evaluate" / "val").iterdir()
    for folder in (finished_run, evaluation):
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert {re.sub(r"step_\d+", "step_<step>", file) for file in files} <= listed
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        assert set(summary) <= listed
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figures = {re.sub("^(val|test)/", "", name) for row in rows for name in row}
    assert figures <= listed
    for name in ("predictions_val.csv", "per_class_test.csv"):
        with (finished_run / name).open(newline="", encoding="utf-8") as file:
            columns = next(csv.reader(file))
        assert {re.sub("^prob_.*", "prob_<class>", column) for column in columns} <= listed
