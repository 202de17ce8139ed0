"""Pickles that run code when pickle loads them."""

import marshal
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from made_checkpoints import StorageClaim, TensorClaim, pickled

PROTO = b"\x80\x02"


class Mkdir:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (self.path,)


def value(item: object) -> bytes:
    """The operations that build `item`, without the frame of a whole pickle."""
    return pickle.dumps(item, protocol=2)[2:-1]


def name(path: str) -> bytes:
    module, _, attribute = path.rpartition(".")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def call(path: str, *arguments: bytes) -> bytes:
    """The operations that call a global with what `arguments` build."""
    return name(path) + b"(" + b"".join(arguments) + b"tR"


def whole(operations: bytes) -> bytes:
    return PROTO + operations + b"."


def live_payloads(marker: Path) -> dict[str, bytes]:
    """Payloads by what they use; each makes the folder `marker` when plain pickle loads it."""
    text = str(marker)
    code = f"__import__('os').mkdir({text!r})"
    script = marker.parent / "made_script.py"
    script.write_text(code)
    array = marker.parent / "made_array.npy"
    np.save(array, np.array([Mkdir(text)], dtype=object), allow_pickle=True)
    compiled = marshal.dumps(compile(code, "payload", "exec"))
    nested = pickle.dumps(Mkdir(text), protocol=2)
    module = call("importlib.import_module", value("os"))
    mkdir = call("os.mkdir", value(text))
    return {
        "os_system": whole(call("os.system", value(f"mkdir '{text}'"))),
        "posix_system": whole(call("posix.system", value(f"mkdir '{text}'"))),
        "subprocess": whole(call("subprocess.check_call", value(["mkdir", text]))),
        "eval": whole(call("builtins.eval", value(code))),
        "exec": whole(call("builtins.exec", value(code))),
        "eval_by_its_old_name": whole(call("__builtin__.eval", value(code))),
        "importlib_and_getattr": whole(call("builtins.getattr", module, value("mkdir")) + b"(" + value(text) + b"tR"),
        "methodcaller": whole(call("operator.methodcaller", value("mkdir"), value(text)) + b"(" + module + b"tR"),
        "runpy": whole(call("runpy.run_path", value(str(script)))),
        "marshal": whole(
            call("types.FunctionType", call("marshal.loads", value(compiled)), call("builtins.globals")) + b")R"
        ),
        "partial": whole(call("functools.partial", name("os.mkdir"), value(text)) + b")R"),
        "map": whole(call("builtins.list", call("builtins.map", name("os.mkdir"), b"(" + value(text) + b"t"))),
        "nested_pickle": whole(call("pickle.loads", value(nested))),
        "nested_torch_load": whole(call("torch.storage._load_from_bytes", value(nested))),
        "numpy_load": whole(call("numpy.load", value(str(array)), value(None), value(True))),
        "timeit": whole(call("timeit.timeit", value(code), value("pass"), name("timeit.default_timer"), value(1))),
        # an object that is given os.mkdir as its __setstate__, and then a state
        "setstate": whole(
            name("types.SimpleNamespace") + b")R" + value({"__setstate__": os.mkdir}) + b"b" + value(text) + b"b"
        ),
        "instance_operation": PROTO + b"(" + value(text) + b"ios\nmkdir\n.",
        "object_operation": PROTO + b"(" + name("os.mkdir") + value(text) + b"o.",
        "protocol_4": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + value(text) + b"\x85R.",
        "protocol_0": b"cos\nmkdir\n(V" + text.encode() + b"\ntR.",
        "inside_a_list": PROTO + b"]" + mkdir + b"a.",
        "inside_a_key": PROTO + b"}" + mkdir + value(1) + b"s.",
        "made_and_dropped": PROTO + mkdir + b"0}.",
    }


def quiet_payloads(marker: Path) -> dict[str, bytes]:
    """Payloads that plain pickle cannot show to run here: they end the process, open windows or are torch's own."""
    text = str(marker)
    storage = StorageClaim("0", 2)
    return {
        "webbrowser": whole(call("webbrowser.open", value("http://localhost/"))),
        "execv": whole(call("os.execv", value("/bin/mkdir"), value(["mkdir", text]))),
        "pty": whole(call("pty.spawn", value(["mkdir", text]))),
        "extension": PROTO + b"\x82\x01" + b")R.",
        "new_object": whole(name("subprocess.Popen") + value((["mkdir", text],)) + b"\x81"),
        "new_object_with_keywords": b"\x80\x04" + name("subprocess.Popen") + value((["mkdir", text],)) + b"}\x92.",
        "copyreg": whole(call("copyreg.__newobj__", name("subprocess.Popen"))),
        "numpy_reconstruct": pickle.dumps(np.array([Mkdir(text)], dtype=object), protocol=2),
        "numpy_scalar": pickle.dumps(np.float64(1), protocol=2),
        "codecs": whole(call("_codecs.decode", value(b"x"), value("zlib_codec"))),
        "torch_hub": whole(call("torch.hub.load", value(text), value("x"), value("local"))),
        "rebuild_from_type": whole(
            call("torch._tensor._rebuild_from_type_v2", name("os.mkdir"), name("torch.Tensor"), value((text,)), b"}")
        ),
        "parameter_with_state": whole(
            call("torch._utils._rebuild_parameter_with_state", value(None), value(True), value({}), value({"a": 1}))
        ),
        "hooks": pickled({"w": TensorClaim(storage, (2,), (1,), hooks=OrderedDict({0: os.mkdir}))}),
        "hooks_with_attributes": whole(call("collections.OrderedDict") + value({"items": os.mkdir}) + b"b"),
        "storage_type": pickled({"w": TensorClaim(StorageClaim("0", 2, kind=os.mkdir), (2,), (1,))}),
        "whole_module": pickle.dumps(torch.nn.Linear(2, 2), protocol=2),
    }
