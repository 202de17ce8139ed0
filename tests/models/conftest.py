"""No test here reaches a network, and large networks are built of shapes alone."""

import contextlib
import socket

import pytest
import torch


@pytest.fixture(autouse=True)
def network_attempts(monkeypatch):
    """Every look-up and connection fails at once; the list holds what was tried."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("the network is off in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


@pytest.fixture
def hub_dir(tmp_path):
    """An empty torch hub cache."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    yield folder
    torch.hub.set_dir(before)


@pytest.fixture
def on_meta(monkeypatch):
    """A context in which torchvision's networks are built without values. regnet computes its widths with tensors."""
    from torchvision.models.regnet import BlockParams

    original = BlockParams.from_init_params.__func__

    def from_init_params(cls, *args, **kwargs):
        with torch.device("cpu"):
            return original(cls, *args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(from_init_params))

    @contextlib.contextmanager
    def context():
        with torch.device("meta"):
            yield

    return context
