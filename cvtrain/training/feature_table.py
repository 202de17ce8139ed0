"""`FeatureTable`: the features of one view of a split, by the place of the image."""

import numpy as np
import torch

from cvtrain.models.backbone import FeatureSpec


class FeatureTable:
    """Rows of features, in the order in which they come.

    Args:
        form: of one row.
        num_rows: how many there will be at most.
        num_images: size of the source, whose places the rows are found by.
        device: where the rows are kept.
    """

    def __init__(self, form: FeatureSpec, *, num_rows: int, num_images: int, device: torch.device) -> None:
        self.form = form
        self.is_complete = False
        # Pages that are not written yet take no memory.
        self._rows = torch.empty((num_rows, *form.shape), dtype=form.dtype, device=device)
        self._row_of = np.full(num_images, -1, dtype=np.int64)
        self._num_rows = 0

    def clear(self) -> None:
        """Forget all rows."""
        self.is_complete, self._num_rows = False, 0
        self._row_of.fill(-1)

    def put(self, indices: np.ndarray, features: torch.Tensor) -> None:
        """Keep `features` (B, ...) as those of the images at `indices` (B,) int64."""
        first, last = self._num_rows, self._num_rows + len(indices)
        self._rows[first:last] = features
        self._row_of[indices] = np.arange(first, last)
        self._num_rows = last

    def has(self, indices: np.ndarray) -> np.ndarray:
        """(B,) bool: which of the images at `indices` have a row. The others could not be read."""
        return self._row_of[indices] >= 0

    def take(self, indices: np.ndarray) -> torch.Tensor:
        """(B, ...): the features of the images at `indices`, all of which have a row."""
        rows = torch.from_numpy(self._row_of[indices]).to(self._rows.device)
        return self._rows.index_select(0, rows).contiguous(memory_format=self.form.memory_format)
