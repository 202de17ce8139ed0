"""Runs the wrong commands of docs/errors.md and writes down what they answer.

python scripts/record_errors.py            run every `$ cvtrain ...` line and renew the answer below it
python scripts/record_errors.py --check    exit with 1 if an answer is not what docs/errors.md says

Commands run in a folder with `photos/train/{cat,dog}`, `photos/val/{cat,dog}`, an `empty/` folder and a folder of the
user's own config, `my_conf/`, and two wrong sweep files. The folder's own path is written as /home/me.
"""

import io
import os
import re
import shlex
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cvtrain.cli.main import run  # noqa: E402

TARGET = ROOT / "docs" / "errors.md"
BLOCK = re.compile(r"```console\n\$ cvtrain(?P<arguments>[^\n]*)\n(?P<answer>.*?)```", re.DOTALL)
MY_EXPERIMENT = """\
# @package _global_
optimizer:
  lr: 0.01
  momentun: 0.9
"""
WRONG_SEARCH = """\
method: bayesian
metric: {name: val/acuracy}
parameters:
  optimizer.lr: {min: 0.1, max: 0.01}
  model.dropout: 0.5
early_terminate: {type: hyperband}
"""
STRANGE_SEARCH = """\
method: random
parameters:
  optimzer.lr: {min: 0.001, max: 0.1}
  model: {values: [mlp, resnet19]}
"""


def make_folder(folder: Path) -> None:
    """What the commands of docs/errors.md find in their working folder."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / "photos" / split / name).mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "photos.zip").touch()
    (folder / "my_conf" / "experiment").mkdir(parents=True)
    (folder / "wrong.yaml").write_text(WRONG_SEARCH, encoding="utf-8")
    (folder / "strange.yaml").write_text(STRANGE_SEARCH, encoding="utf-8")
    (folder / "my_conf" / "experiment" / "mine.yaml").write_text(MY_EXPERIMENT, encoding="utf-8")


def answer(arguments: str, folder: Path) -> str:
    """What `cvtrain <arguments>` prints in `folder`, with its exit status below."""
    output, before = io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with redirect_stdout(output), redirect_stderr(output):
            status = run(shlex.split(arguments))
    finally:
        os.chdir(before)
    text = output.getvalue().replace(str(folder), "/home/me")
    return f"{text}(exit {status})\n"


def renewed(text: str) -> str:
    """The text of docs/errors.md with every answer as it is now."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        make_folder(folder)

        def replace(match: re.Match[str]) -> str:
            arguments = match["arguments"]
            return f"```console\n$ cvtrain{arguments}\n{answer(arguments, folder)}```"

        result = BLOCK.sub(replace, text)
        if (folder / "runs").exists():
            raise RuntimeError("a wrong command of docs/errors.md left a run folder behind")
    return result


def main() -> None:
    text = TARGET.read_text(encoding="utf-8")
    result = renewed(text)
    if "--check" in sys.argv[1:]:
        if result != text:
            sys.exit("docs/errors.md is not true any more: run python scripts/record_errors.py")
        return
    TARGET.write_text(result, encoding="utf-8")
    print(f"wrote {TARGET}: {len(BLOCK.findall(result))} commands")


if __name__ == "__main__":
    main()
