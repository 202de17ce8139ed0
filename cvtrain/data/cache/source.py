"""`CachedSource`: a source that decodes each image once."""

import numpy as np

from cvtrain.data.cache.store import ImageFile
from cvtrain.data.images.resize import EvalTransform
from cvtrain.data.loader.timing import stage
from cvtrain.data.sources.source import ImageSource, uses_global_rng


class NullStore:
    """Keeps nothing: each image is decoded each time it is read, to the same pixels as with a store."""

    def get(self, index: int) -> np.ndarray | None:
        return None

    def put(self, index: int, pixels: np.ndarray) -> None:
        return


ImageStore = ImageFile | NullStore


class CachedSource:
    """The images of `source`, shrunk to the size that is needed, and kept.

    What `read` returns never depends on what is stored, by whom and since when: the first read shrinks too.

    Args:
        source: images and labels.
        resize: its `shrink` makes what is kept.
        store: keeps it. An image that cannot be read is not kept, and is tried again each time.
        split: whose images they are, for the log.
        location: where the store is, in words, such as "in RAM".
    """

    def __init__(
        self, source: ImageSource, resize: EvalTransform, store: ImageStore, *, split: str = "", location: str = ""
    ) -> None:
        self.source = source
        self.labels = source.labels
        self.uses_global_rng = uses_global_rng(source)
        self.resize = resize
        self.store = store
        self.split = split
        self.location = location

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        """Image `index` as (H, W, C) uint8, shrunk; it cannot be written if it comes from the store."""
        with stage("read"):
            pixels = self.store.get(index)
        if pixels is None:
            pixels = self.resize.shrink(self.source.read(index))
            with stage("cache"):
                self.store.put(index, pixels)
        return pixels

    def name(self, index: int) -> str:
        return self.source.name(index)
