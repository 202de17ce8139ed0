"""Importing torchvision without torch's compiler, which it would bring along for what no classifier needs."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_COMPILER, _ASKED = "torch._dynamo", "torch._dynamo.utils"


def import_torchvision() -> ModuleType:
    """The package torchvision; call it before the first `from torchvision import ...`.

    `torchvision.ops.roi_align` asks the compiler for one function, and importing that takes 1.2 s of a core. Where the
    compiler is not imported yet, it is stood in for as long as torchvision is, by a function that imports it when it is
    called.
    """
    return _import("torchvision", _torchvision)


def import_transforms() -> ModuleType:
    """The module torchvision.transforms.v2; call it before the first `from torchvision.transforms import v2`.

    It tells the compiler to leave one function of its own alone. Without the compiler that function stays as it is,
    which a compiled model never meets.
    """
    import_torchvision()
    return _import("torchvision.transforms.v2", _transforms)


def _torchvision() -> ModuleType:
    import torchvision

    return torchvision


def _transforms() -> ModuleType:
    from torchvision.transforms import v2

    return v2


def _import(name: str, imported: Callable[[], ModuleType]) -> ModuleType:
    if name not in sys.modules and _COMPILER not in sys.modules:
        _import_without_compiler(imported)
    return imported()


def _import_without_compiler(imported: Callable[[], ModuleType]) -> None:
    compiler, asked = ModuleType(_COMPILER), ModuleType(_ASKED)
    asked.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    compiler.utils = asked  # type: ignore[attr-defined]
    compiler.disable = _disable  # type: ignore[attr-defined]
    known = set(sys.modules)
    sys.modules.update({_COMPILER: compiler, _ASKED: asked})
    try:
        imported()
    except (ImportError, AttributeError):  # another torchvision, which asks for more: it is imported anew
        for half_imported in [new for new in sys.modules if new not in known and new.startswith("torchvision")]:
            del sys.modules[half_imported]
    finally:
        for module_name, stand_in in ((_COMPILER, compiler), (_ASKED, asked)):
            if sys.modules.get(module_name) is stand_in:
                del sys.modules[module_name]


def _disable(function: Callable[..., Any] | None = None, *_arguments: Any, **_settings: Any) -> Any:
    return function if function is not None else _disable


def _is_compile_supported(*arguments: Any) -> Any:
    from torch._dynamo import utils

    return utils.is_compile_supported(*arguments)
