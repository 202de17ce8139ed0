import hashlib
import pickle

import numpy as np
import pytest

from cvtrain.data.sources.path_table import PathTable, canonical, printable

NAMES = ["ants/1.jpg", "", "bees/größe 日本.png", "bees/\udcff.jpg", "z" * 300]


def test_table_gives_back_every_string() -> None:
    table = PathTable.from_iterable(iter(NAMES))
    assert len(table) == 5
    assert list(table) == NAMES
    assert table[-1] == NAMES[-1]
    assert table.buffer.dtype == np.uint8 and table.offsets.dtype == np.int64


def test_row_outside_the_table_is_an_index_error() -> None:
    table = PathTable.from_iterable(NAMES)
    for row in (5, -6):
        with pytest.raises(IndexError, match=f"row {row} of a table with 5 rows"):
            table[row]


def test_take_equals_a_list_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvtrain.data.sources.path_table._TAKE_ROWS", 3)  # several chunks
    table = PathTable.from_iterable(NAMES)
    rows = np.array([4, 0, 0, 1, 3, 2, 4, 1])
    assert list(table.take(rows)) == [NAMES[row] for row in rows]
    assert list(table.take(np.zeros(0, np.int64))) == []


def test_concatenate_keeps_the_order() -> None:
    tables = [PathTable.from_iterable(part) for part in (["a", "bc"], [], ["", "def"])]
    assert list(PathTable.concatenate(tables)) == ["a", "bc", "", "def"]
    assert len(PathTable.concatenate([])) == 0


def test_200_000_paths_take_their_bytes_and_8_per_offset() -> None:
    table = PathTable.from_iterable(
        f"train/class_{number % 1000:04d}/image_{number:08d}.jpg" for number in range(200_000)
    )
    length = len("train/class_0000/image_00000000.jpg")
    assert table.nbytes == 200_000 * length + 8 * 200_001  # 8.6 MB: 43 MB for a million
    assert table[123_456] == "train/class_0456/image_00123456.jpg"
    assert len(pickle.dumps(table)) < table.nbytes + 1000


def test_hashes_are_keyed_blake2b_of_the_composed_name() -> None:
    expected = [
        int.from_bytes(
            hashlib.blake2b(
                name.encode("utf-8", "surrogateescape"), digest_size=8, key=(7).to_bytes(8, "little")
            ).digest(),
            "little",
        )
        for name in NAMES
    ]
    assert PathTable.from_iterable(NAMES).hashes(7).tolist() == expected
    composed, decomposed = "caf\u00e9/1.jpg", "cafe\u0301/1.jpg"
    hashes = PathTable.from_iterable([composed, decomposed]).hashes(0)
    assert hashes[0] == hashes[1]
    assert canonical(decomposed) == composed


def test_names_that_are_no_utf8_can_be_printed() -> None:
    assert printable("bees/\udcff.jpg") == "bees/\\udcff.jpg"
    assert printable("größe") == "größe"
