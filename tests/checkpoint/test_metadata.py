"""Snapshots: complete copies of plain values and tensors."""

import enum
import os
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cvtrain.checkpoint import SnapshotError, inference_weights, snapshot


def test_copies_share_no_memory():
    weight = torch.ones(3)
    nested = {"a": [weight, {"b": (weight, 2)}]}
    copied = snapshot(nested)
    weight.zero_()
    nested["a"].append(1)
    assert torch.equal(copied["a"][0], torch.ones(3))
    assert torch.equal(copied["a"][1]["b"][0], torch.ones(3))
    assert copied["a"][1]["b"][1] == 2
    assert len(copied["a"]) == 2


def test_subclasses_become_plain():
    class Color(str, enum.Enum):
        red = "red-value"

    point = namedtuple("point", "x y")
    copied = snapshot(
        OrderedDict(
            color=Color.red,
            version=torch.__version__,
            mean=np.float64(0.5),
            count=np.int64(3),
            flag=np.bool_(True),
            size=torch.Size([2, 3]),
            point=point(1, 2.0),
            weight=nn.Parameter(torch.ones(2)),
        )
    )
    expected = {
        "color": "red-value",
        "version": str.__str__(torch.__version__),
        "mean": 0.5,
        "count": 3,
        "flag": True,
        "size": (2, 3),
        "point": (1, 2.0),
    }
    weight = copied.pop("weight")
    assert type(weight) is torch.Tensor and not weight.requires_grad
    assert copied == expected and type(copied) is dict
    assert [type(value) for value in copied.values()] == [str, str, float, int, bool, tuple, tuple]


def test_views_are_copied_without_what_they_are_a_view_of():
    base = torch.arange(1000.0)
    for view in (base[10:20], base[::2], torch.ones(1).expand(50), base.view(10, 100).t()[:3]):
        copied = snapshot({"view": view})["view"]
        assert torch.equal(copied, view)
        assert copied.untyped_storage().nbytes() == copied.numel() * 4


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"model": {"extra": np.zeros(3)}}, r"state\['model'\]\['extra'\] is a numpy.ndarray"),
        ({"a": [1, {2, 3}]}, r"state\['a'\]\[1\] is a builtins.set"),
        ({"a": Path("x")}, r"state\['a'\] is a pathlib"),
        ({"a": b"x"}, "builtins.bytes"),
        ({"a": os.system}, "builtin_function_or_method"),
        ({(1, 2): 3}, r"a key \(1, 2\)"),
        ({-1: 3}, "a key -1"),
        ({"a": 2**64}, "more than 64 bits"),
        ({"a": "caf\udce9"}, "no Unicode text"),
        ({"caf\udce9": 1}, "no Unicode text"),
        ({"a": np.longdouble(1)}, "longdouble"),
        ({"a": np.datetime64("2020-01-01")}, "date"),
        ({"a": torch.zeros(2).to_sparse()}, "sparse"),
        ({"a": torch.zeros(2, device="meta")}, "meta"),
    ],
)
def test_what_cannot_be_kept_is_named_with_its_place(value, where):
    with pytest.raises(SnapshotError, match=where):
        snapshot(value)


def test_inference_weights_prefers_the_ema():
    assert inference_weights({"model": {"w": 1}, "ema": None}) == {"w": 1}
    for key in ("ema", "average"):  # the second in files of earlier versions
        assert inference_weights({"model": {"w": 1}, key: {"num_updates": 3, "model": {"w": 2}}}) == {"w": 2}
