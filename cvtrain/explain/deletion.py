"""Whether a heat map means anything: what the class loses when the hottest pixels go."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cvtrain.explain.methods import mean_colour

# Share of the pixels that are taken away.
HOT_SHARE = 0.2
# With 19, the hot pixels cost more than all others in one of 20 maps that mean nothing.
NUM_RANDOM = 19


@dataclass(frozen=True)
class Deletion:
    """What the class's probability loses when pixels get the image's mean colour.

    Attributes:
        hot_drop: by the hottest 20 % of the pixels; negative: it rises.
        random_drops: by as many pixels elsewhere: the same shape, shifted at random around the image, 19 times.
    """

    hot_drop: float
    random_drops: tuple[float, ...]

    @property
    def random_drop(self) -> float:
        """Mean of `random_drops`."""
        return sum(self.random_drops) / len(self.random_drops)

    @property
    def score(self) -> float:
        """`hot_drop` less `random_drop`, -1 to 1: what the map knows of the class; near 0, it knows nothing."""
        return self.hot_drop - self.random_drop

    @property
    def is_meaningful(self) -> bool:
        """True if the hot pixels cost the class more than each of the 19 others: by chance, in 1 of 20 maps (p 0.05).

        A test of ranks, since shifting a map that means nothing would change nothing.
        """
        return self.hot_drop > 0 and self.hot_drop > max(self.random_drops)


def measure_deletion(
    score: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, heat: torch.Tensor
) -> Deletion | None:
    """Return what the class loses without the hottest pixels; None for a map that is the same everywhere.

    The pixels elsewhere are the hot ones shifted, not scattered: networks suffer from scattered pixels whatever lies
    under them. Close to the curves of Petsiuk et al. 2018 (RISE, arXiv 1806.07421), at one point of them.

    Args:
        score: (B, C, S, S) uint8 to the class's probability, (B,) float64.
        pixels: (C, S, S) uint8.
        heat: (S, S) in 0..1.
    """
    if float(heat.min()) == float(heat.max()):
        return None
    hot = hottest(heat).to(pixels.device)
    size = pixels.shape[-1]
    generator = torch.Generator().manual_seed(0)
    # All but no shift at all, each as likely.
    shifts = 1 + torch.randint(size * size - 1, (NUM_RANDOM,), generator=generator)
    masks = [hot, *(hot.roll((int(shift) // size, int(shift) % size), (0, 1)) for shift in shifts)]
    changed = torch.where(torch.stack(masks)[:, None], mean_colour(pixels), pixels)  # (1 + 19, C, S, S)
    probs = score(torch.cat([pixels[None], changed]))
    hot_drop, *random_drops = (probs[0] - probs[1:]).tolist()
    return Deletion(hot_drop, tuple(random_drops))


def hottest(heat: torch.Tensor) -> torch.Tensor:
    """Return (S, S) bool: the hottest 20 % of the pixels, fewer if fewer have any heat."""
    count = max(1, int(heat.numel() * HOT_SHARE))
    flat = heat.flatten()
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(count).indices] = True
    return (mask & (flat > 0)).view_as(heat)
