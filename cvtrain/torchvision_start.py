"""Importing torchvision without torch's compiler, which it would bring along for a layer that no classifier has."""

import sys
from types import ModuleType
from typing import Any

_COMPILER, _ASKED = "torch._dynamo", "torch._dynamo.utils"


def import_torchvision() -> ModuleType:
    """The package torchvision; call it before the first `from torchvision import ...`.

    `torchvision.ops.roi_align` asks the compiler for one function, and importing that takes 1.2 s of a core. Where the
    compiler is not imported yet, it is stood in for as long as torchvision is, by a function that imports it when it is
    called.
    """
    if "torchvision" not in sys.modules and _COMPILER not in sys.modules:
        _import_without_compiler()
    import torchvision

    return torchvision


def _import_without_compiler() -> None:
    compiler, asked = ModuleType(_COMPILER), ModuleType(_ASKED)
    asked.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    compiler.utils = asked  # type: ignore[attr-defined]
    sys.modules.update({_COMPILER: compiler, _ASKED: asked})
    try:
        import torchvision  # noqa: F401
    except ImportError:  # another torchvision, which asks for more: it is imported anew
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    finally:
        for name, stand_in in ((_COMPILER, compiler), (_ASKED, asked)):
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


def _is_compile_supported(*arguments: Any) -> Any:
    from torch._dynamo import utils

    return utils.is_compile_supported(*arguments)
