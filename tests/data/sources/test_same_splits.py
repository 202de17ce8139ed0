"""Several processes that find different images say so at the start, instead of waiting for each other in a step."""

import re

import numpy as np
import pytest

from cvtrain.config.errors import ConfigError
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.same_splits import check_splits_match
from cvtrain.data.sources.source import FileSource, Splits
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup


class Two(ProcessGroup):
    """Rank 1, whose other, rank 0, has found `other`."""

    rank, world_size, node = 1, 2, "b"

    def __init__(self, other: Splits) -> None:
        self.other = other

    def all_gather(self, value):
        told = []

        class Listener(ProcessGroup):
            world_size = 2

            def all_gather(self, value):
                told.append(("a", value[1]))
                return told

        check_splits_match(self.other, Listener())
        return [*told, value]


def splits(names: list[str], labels: list[int], root: str = "/data") -> Splits:
    def source(names: list[str], labels: list[int]) -> FileSource:
        return FileSource(
            root=root, paths=PathTable.from_strings(names), labels=np.array(labels, np.int64), reader=np.zeros
        )

    return Splits(source(names, labels), source(["v.png"], [0]), None, ("ant", "bee"))


SAME = (["a/1.png", "b/2.png"], [0, 1])


def test_the_same_files_in_another_folder_are_the_same():
    check_splits_match(splits(*SAME), SINGLE_PROCESS)
    check_splits_match(splits(*SAME, root="/scratch"), Two(splits(*SAME)))


@pytest.mark.parametrize(
    ("names", "labels", "told"),
    [
        (["a/1.png"], [0], "rank 0 has 2 in split train, a process on machine b has 1$"),
        (["a/1.png", "b/3.png"], [0, 1], "b has 2, others or in other classes"),
        (["a/1.png", "b/2.png"], [0, 0], "b has 2, others or in other classes"),
    ],
)
def test_what_differs_is_named(names, labels, told):
    with pytest.raises(ConfigError) as caught:
        check_splits_match(splits(names, labels), Two(splits(*SAME)))
    assert re.search(told, str(caught.value), re.MULTILINE), caught.value
