"""Imports point downwards only: the layers of docs/architecture.md, read from the source without running it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "cvtrain"

# From the bottom up. A part imports from layers below its own, never from its own or a higher one.
LAYERS = (
    {"__init__", "config"},
    {
        "atomic",
        "command",
        "compilation",
        "completion",
        "console",
        "distributed",
        "garbage",
        "interruption",
        "run_lock",
        "runtime",
        "stage_clock",
        "torchvision_start",
        "tracking",
        "trainer_settings",
    },
    {
        "agreement",
        "averaging",
        "batch_norm",
        "checkpoint",
        "data",
        "gradients",
        "launch",
        "loggers",
        "losses",
        "metrics",
        "models",
        "normalization",
        "optim",
        "progress",
    },
    {
        "batch_share",
        "evaluation",
        "faults",
        "features",
        "loop_times",
        "placement",
        "report",
        "run_settings",
        "training_state",
    },
    {"evaluation_files", "trainer"},
    {"continuation"},
    {"assembly"},
    {"advice"},
    {"outcome"},
    {"cache", "evaluate", "sweep", "train"},
    {"job", "joining", "starting"},
    {"handing_over"},
    {"cli"},
    {"__main__"},
    {"trial_worker"},
)
# Libraries that take long to import, or that an installation may lack: imported by the function that needs them.
LAZY_LIBRARIES = {
    "albumentations",
    "cv2",
    "datasets",
    "kornia",
    "matplotlib",
    "mlflow",
    "scipy",
    "skimage",
    "sklearn",
    "tensorboard",
    "timm",
    "torchvision",
    "wandb",
}
# What a process may load that only reads a command line.
CONFIG_LIBRARIES = {"antlr4", "hydra", "omegaconf", "yaml"}


def source_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def part_of(file: Path) -> str:
    """The part of the house that a file belongs to: its package below cvtrain, or its own name."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def statements(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    """The nodes that run, without the body of `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside_functions:
            continue
        yield node
        yield from statements(node, inside_functions=inside_functions)


def imported_modules(source: str, *, inside_functions: bool = True) -> set[str]:
    """Dotted names of the modules that a source imports; `from cvtrain import trainer` counts as cvtrain.trainer."""
    found = set()
    for node in statements(ast.parse(source), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            module = node.module or ""
            found |= {f"cvtrain.{alias.name}" for alias in node.names} if module == "cvtrain" else {module}
    return found


def imported_parts(source: str) -> set[str]:
    """The parts of cvtrain that a source imports; a plain name such as `__version__` is the package itself."""
    parts = {module.split(".")[1] for module in imported_modules(source) if module.startswith("cvtrain.")}
    known = set().union(*LAYERS)
    return {part if part in known else "__init__" for part in parts}


def test_every_part_has_one_layer():
    listed = [part for parts in LAYERS for part in parts]
    assert len(listed) == len(set(listed))
    assert set(listed) == {part_of(file) for file in source_files()}


@pytest.mark.parametrize("file", source_files(), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(file):
    part = part_of(file)
    others = imported_parts(file.read_text(encoding="utf-8")) - {part}
    wrong = {other for other in others if layer_of(other) >= layer_of(part)}
    assert not wrong, f"{part} is in layer {layer_of(part)} and must not import {', '.join(sorted(wrong))}"


def test_config_is_free_of_torch_and_of_everything_heavy():
    allowed = CONFIG_LIBRARIES | {"cvtrain"} | sys.stdlib_module_names
    for file in (PACKAGE / "config").rglob("*.py"):
        modules = imported_modules(file.read_text(encoding="utf-8"))
        assert {module.split(".")[0] for module in modules} <= allowed, file


def test_libraries_that_a_run_may_not_need_are_imported_inside_functions():
    for file in source_files():
        modules = imported_modules(file.read_text(encoding="utf-8"), inside_functions=False)
        assert not {module.split(".")[0] for module in modules} & LAZY_LIBRARIES, file


def test_names_are_imported_at_run_time_in_one_place_only():
    """A config names code to run through `import_object` alone; the other call has its module written out."""
    callers = {}
    for file in source_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
                callers[file.relative_to(PACKAGE).as_posix()] = ast.unparse(node.args[0])
    assert callers == {
        "config/importing.py": "name",
        "data/augment/albumentations_ops.py": "'albumentations'",
    }


def test_the_reader_of_imports_sees_lazy_ones_and_passes_over_types():
    source = """
import torch
from cvtrain import __version__, trainer
if TYPE_CHECKING:
    from cvtrain.cli import run
def late():
    import wandb
    from cvtrain.data.build import build_splits
class Holder:
    from cvtrain.metrics import ClassificationMetrics
    def method(self):
        import timm.models
"""
    assert imported_parts(source) == {"__init__", "trainer", "data", "metrics"}
    assert imported_modules(source, inside_functions=False) == {
        "torch",
        "cvtrain.__version__",
        "cvtrain.trainer",
        "cvtrain.metrics",
    }
    assert {"wandb", "timm.models"} <= imported_modules(source)
