"""Which checkpoint of a folder a run goes on from."""

from pathlib import Path
from typing import Any

from cvtrain.checkpoint.errors import CheckpointError
from cvtrain.checkpoint.file import load_checkpoint
from cvtrain.checkpoint.store import BEST, LAST, numbered_checkpoints


def latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest checkpoint of `folder` that is whole: its path, its content, and what was wrong with newer ones.

    last.pt comes first, then step_*.pt from the newest on, and best.pt, which may be much older, if there is no other.

    Returns:
        None if the folder holds no checkpoint at all.

    Raises:
        CheckpointError: there are some, and none can be used; the message names each and its fault.
    """
    candidates = [folder / LAST, *(path for _, path in numbered_checkpoints(folder)), folder / BEST]
    problems: list[str] = []
    for path in candidates:
        if not path.exists():
            continue
        try:
            return path, load_checkpoint(path), problems
        except CheckpointError as error:
            problems.append(f"{path} {error.rule}")
    if not problems:
        return None
    raise CheckpointError(folder, "none of its checkpoints can be used", "\n".join(problems))
