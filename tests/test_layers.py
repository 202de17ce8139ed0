"""Imports point downwards only: the seven layers of docs/architecture.md, read from the source without running it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from layers import LAYERS

PACKAGE = Path(__file__).resolve().parents[1] / "cvtrain"

# Imports inside a layer: ranks matter to the parts of layer 2 and to data; verbs know each other.
SIBLINGS = {
    ("models", "distributed"),
    ("optim", "distributed"),
    ("loggers", "distributed"),
    ("cli", "commands"),
    ("cli", "sweep"),
    ("__main__", "cli"),
    ("classifier", "commands"),
    ("commands", "classifier"),
    ("commands", "serve"),
    ("serve", "classifier"),
    ("__init__", "classifier"),
    ("__init__", "commands"),
    ("sweep", "cli"),
    ("commands", "auto"),
    ("auto", "commands"),
}
# Libraries that take long to import, or that an installation may lack: imported by the function that needs them.
LAZY_LIBRARIES = {
    "albumentations",
    "cv2",
    "datasets",
    "fastapi",
    "kornia",
    "matplotlib",
    "mlflow",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "safetensors",
    "scipy",
    "skimage",
    "starlette",
    "sklearn",
    "tensorboard",
    "timm",
    "torchvision",
    "uvicorn",
    "wandb",
}
# What a process may load that only reads a command line.
CONFIG_LIBRARIES = {"antlr4", "hydra", "omegaconf", "yaml"}


def source_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def part_of(file: Path) -> str:
    """Folder below cvtrain that a file belongs to, or its own name at the top."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def statements(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    """Every node; without those inside functions if `inside_functions` is False."""
    for node in ast.iter_child_nodes(tree):
        if not inside_functions:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
        yield node
        yield from statements(node, inside_functions=inside_functions)


def imported_modules(source: str, *, inside_functions: bool = True) -> set[str]:
    """Dotted names of the modules that a source imports; `from cvtrain import losses` counts as cvtrain.losses."""
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
    """Folders and top files of cvtrain that a source imports; names such as `__version__` need no layer."""
    known = set().union(*LAYERS)
    parts = {module.split(".")[1] for module in imported_modules(source) if module.startswith("cvtrain.")}
    return parts & known


def test_every_part_has_one_layer():
    listed = [part for parts in LAYERS for part in parts]
    assert len(listed) == len(set(listed))
    assert {part_of(file) for file in source_files()} <= set(listed)


@pytest.mark.parametrize("file", source_files(), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(file):
    part = part_of(file)
    others = imported_parts(file.read_text(encoding="utf-8")) - {part}
    wrong = {other for other in others if layer_of(other) >= layer_of(part) and (part, other) not in SIBLINGS}
    assert not wrong, f"{part} is in layer {layer_of(part)} and must not import {', '.join(sorted(wrong))}"


def test_few_files_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


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
    """A config names code to run through `import_object` alone; of the other calls the modules are written out."""
    callers = {}
    for file in source_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
                callers[file.relative_to(PACKAGE).as_posix()] = ast.unparse(node.args[0])
    assert callers == {
        "__init__.py": "_MODULES[name]",
        "config/imports.py": "name",
        "data/augment/albumentations.py": "'albumentations'",
    }


def test_lazy_imports_and_types_count():
    source = """
import torch
from cvtrain import __version__, losses
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
    assert imported_parts(source) == {"losses", "cli", "data", "metrics"}
    assert imported_modules(source, inside_functions=False) == {
        "torch",
        "cvtrain.__version__",
        "cvtrain.losses",
        "cvtrain.metrics",
    }
    assert {"wandb", "timm.models"} <= imported_modules(source)
