"""A short run on two classes of photos, which the verbs that use a checkpoint are tried on."""

import pytest
from two_classes import OPTIONS, write_photos

import cvtrain as face


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return face.train(*OPTIONS, f"data.root={photos}", run_dir=tmp_path_factory.mktemp("run"))
