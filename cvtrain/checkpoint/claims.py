"""Reads the pickle of a checkpoint without making what it asks for: plain values, and what it claims of its tensors.

`torch.load(weights_only=True)` runs no code of a file, but it takes memory on its word: a tensor of any shape over a
storage of one element, a bytearray of any length. So the pickle is walked through here first. It may build dicts,
lists, tuples, str, int, float, bool, None and tensors that fill their storage, which is all that `to_cpu` leaves;
anything else is refused, by name where it names something.
"""

import math
import pickletools
from dataclasses import dataclass
from typing import Any

_MAX_OPERATIONS = 2_000_000
_MAX_VALUES = 2_000_000
_MAX_DEPTH = 64
_MAX_KEY = 2**31

ITEM_BYTES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}
_STORAGES = {f"torch {name}": item_bytes for name, item_bytes in ITEM_BYTES.items()}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED_DICT = "collections OrderedDict"


class ClaimError(ValueError):
    """Why a pickle is refused, as the end of a sentence."""


@dataclass(frozen=True)
class TensorClaim:
    """What a pickle says of one tensor, found to fit the storage in the file."""

    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names; only those of a plain tensor are let through."""

    name: str


@dataclass(frozen=True)
class _Storage:
    num_items: int
    item_bytes: int


class _NoHooks:
    """An empty OrderedDict: the backward hooks that no tensor of a checkpoint has."""


_MARK = object()


def read_claims(pickle: bytes, storage_bytes: dict[str, int]) -> Any:
    """What `pickle` would build, with a `TensorClaim` in place of each tensor.

    Args:
        pickle: the archive's data.pkl, protocol 2.
        storage_bytes: the size in the file of each storage, by key.

    Raises:
        ClaimError: it is more than plain values and tensors, or claims more than the file holds.
    """
    value = _Reader(storage_bytes).read(pickle)
    _check_size(value)
    return value


class _Reader:
    """A stack machine for the operations that torch.save uses for plain values and tensors."""

    def __init__(self, storage_bytes: dict[str, int]) -> None:
        self.storage_bytes = dict(storage_bytes)
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, pickle: bytes) -> Any:
        end = 0
        try:
            for count, (operation, argument, position) in enumerate(pickletools.genops(pickle)):
                if count >= _MAX_OPERATIONS:
                    raise ClaimError(f"holds more than {_MAX_OPERATIONS} plain values")
                if operation.name == "STOP":
                    end = (position or 0) + 1
                    break
                self.step(operation.name, argument)
        except ClaimError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ClaimError(f"holds a damaged pickle ({error or type(error).__name__})") from error
        if end != len(pickle) or len(self.stack) != 1:
            raise ClaimError("holds a damaged pickle (it does not end where it should)")
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _TUPLES or name in _COLLECTED:
            self.collect(name)
        elif name == "LONG1" and -(2**63) <= argument < 2**64:
            stack.append(argument)
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self.call(function, arguments))
        elif name != "PROTO" or argument != 2:
            raise ClaimError(f"holds more than tensors and plain values (pickle operation {name} {argument!r:.40})")

    def collect(self, name: str) -> None:
        """Put the topmost values into a new tuple, or into the list or dict below them."""
        if name in _TUPLES:
            self.stack.append(tuple(self.pop(_TUPLES[name])))
            return
        items = self.pop(_COLLECTED[name])
        if name == "TUPLE":
            self.stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            _plain(self.stack[-1], list).extend(items)
        else:
            target = _plain(self.stack[-1], dict)
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key)] = value

    def pop(self, count: int | None) -> list[Any]:
        """The topmost `count` values; None: all down to the mark."""
        if count is None:
            items = []
            while (item := self.stack.pop()) is not _MARK:
                items.append(item)
            return items[::-1]
        items = self.stack[-count:]
        if len(items) < count or any(item is _MARK for item in items):
            raise ClaimError("holds a damaged pickle (its stack is empty)")
        del self.stack[-count:]
        return items

    def storage(self, claim: Any) -> _Storage:
        """The storage ("storage", type, key, device, num_items); the file has to hold it at that size."""
        kind, storage_type, key, device, num_items = _plain(claim, tuple)
        item_bytes = _STORAGES.get(storage_type.name) if isinstance(storage_type, _Name) else None
        if kind != "storage" or item_bytes is None or device != "cpu" or not isinstance(key, str):
            raise ClaimError(f"holds a tensor of an unknown kind ({_shown(storage_type)} on {device!r:.20})")
        stored = self.storage_bytes.pop(key, None)
        if stored is None:
            raise ClaimError(f"holds two tensors with one storage, or one without ({key[:20]!r})")
        if type(num_items) is not int or num_items * item_bytes != stored:
            raise ClaimError(f"claims {num_items} numbers of {item_bytes} bytes in a storage of {stored} bytes")
        return _Storage(num_items, item_bytes)

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call gives, of the only two that there may be: a tensor, and its empty dict of hooks."""
        name = function.name if isinstance(function, _Name) else None
        if name == _ORDERED_DICT and arguments == ():
            return _NoHooks()
        if name != _REBUILD:
            raise ClaimError(f"holds more than tensors and plain values ({_shown(function)})")
        storage, offset, shape, strides, requires_grad, hooks = _plain(arguments, tuple)
        if not isinstance(storage, _Storage) or requires_grad is not False or not isinstance(hooks, _NoHooks):
            raise ClaimError("holds a tensor with more than numbers")
        if offset != 0 or not _fills(storage.num_items, _sizes(shape), _sizes(strides)):
            layout = f"shape {list(shape)[:8]} and strides {list(strides)[:8]}"
            raise ClaimError(f"claims a tensor of {layout} over {storage.num_items} numbers")
        return TensorClaim(shape, storage.num_items * storage.item_bytes)


_LITERALS = ("BINUNICODE", "BININT", "BININT1", "BININT2", "BINFLOAT")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# operations that collect values, with their number; None: all down to the mark
_COLLECTED = {"TUPLE": None, "APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None}
_CONSTANTS = {"EMPTY_TUPLE": (), "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}


def _plain(value: Any, kind: type) -> Any:
    """`value`, which has to be a `kind` and no subclass of it."""
    if type(value) is not kind:
        raise ClaimError("holds a damaged pickle (its values are not where they should be)")
    return value


def _key(key: Any) -> str | int:
    # Python's dict gets slow on whole numbers that an adversary chose; small ones leave little choice.
    if type(key) is str or (type(key) is int and 0 <= key < _MAX_KEY):
        return key
    raise ClaimError(f"holds a dict with a key {_shown(key)}, where text or a small number has to be")


def _sizes(values: Any) -> tuple[int, ...]:
    sizes = _plain(values, tuple)
    if len(sizes) > _MAX_DEPTH or not all(type(size) is int and size >= 0 for size in sizes):
        raise ClaimError(f"claims a tensor of {len(sizes)} dimensions that are not all whole numbers")
    return sizes


def _fills(num_items: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True if a tensor has as many elements as its storage, and its last one is the storage's last."""
    if len(shape) != len(strides) or math.prod(shape) != num_items:
        return False
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return num_items == 0 or last == num_items - 1


def _shown(value: Any) -> str:
    if isinstance(value, _Name):
        return value.name.replace(" ", ".")[:80]
    return type(value).__name__


def _check_size(value: Any) -> None:
    """Refuse what is small in the file and large when one walks through it: deep, circular or shared many times."""
    waiting, count = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_VALUES:
            raise ClaimError(f"is nested more than {_MAX_DEPTH} deep, or repeats itself more than {_MAX_VALUES} times")
        if type(item) is dict:
            waiting.extend((each, depth + 1) for each in item.values())
        elif type(item) in (list, tuple):
            waiting.extend((each, depth + 1) for each in item)
        elif type(item) not in _LEAVES:
            raise ClaimError(f"holds more than tensors and plain values ({_shown(item)})")


_LEAVES = (str, int, float, bool, type(None), TensorClaim)
