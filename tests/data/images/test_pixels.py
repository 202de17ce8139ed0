"""Where an image goes in a batch, from whatever layout a transform left it in."""

import numpy as np
import pytest
import torch

from cvtrain.data.images.convert import place_image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first", "crop", "flipped", "one_pixel"])
def test_an_image_of_any_layout_is_placed(channels: int, layout: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, channels), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if layout == "channels_first":
        image = image.contiguous()
    elif layout == "crop":
        image = image[:, 1:7, 2:8]
    elif layout == "flipped":
        image = image.flip(2)
    elif layout == "one_pixel":
        image = image[:, :1, :1]
    batch = torch.zeros((3, image.shape[1], image.shape[2], channels), dtype=torch.uint8)
    place_image(image, batch[1])
    assert torch.equal(batch[1].permute(2, 0, 1), image)
    assert not batch[0].any() and not batch[2].any()
