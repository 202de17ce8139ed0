"""What training counts as it goes: sums on the device, read only when they are logged, and seconds."""

import time
from collections.abc import Callable

import torch


class TrainMetrics:
    """Loss and accuracy since the last reading and since the start of the epoch.

    The sums stay on the device: adding costs no synchronisation, reading costs one.

    Args:
        device: where the sums are.
        sum_over: replaces a tensor by its sum over all processes of the run, each of which counts its own images.
    """

    def __init__(
        self, device: torch.device, sum_over: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    ) -> None:
        self._sum_over = sum_over
        # loss sum, correct, images; float64 is exact for counts, float32 is what MPS has
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._window = torch.zeros(3, dtype=dtype, device=device)
        self._parts = self._window.unbind()  # views
        self._epoch = torch.zeros(3, dtype=dtype, device=device)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Count one micro-batch: its mean loss, (B, K) logits, and (B,) labels or (B, K) soft targets.

        With soft targets the class of the largest share counts as the right one.
        """
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        num_images = len(labels)
        # Few operations, as each is a launch on a GPU and has its price beside the step of a small network.
        loss_sum, correct, images = self._parts
        loss_sum.add_(loss.detach(), alpha=num_images)
        correct.add_((logits.detach().argmax(dim=1) == labels).sum())
        images.add_(num_images)

    def read_window(self) -> dict[str, float]:
        """`train/loss` and `train/accuracy` since the last reading; empty if nothing was added. Synchronises."""
        values = _means(self._sum_over(self._window.clone()), "train/loss", "train/accuracy")
        self._epoch += self._window
        self._window.zero_()
        return values

    def read_epoch(self) -> dict[str, float]:
        """`train/epoch_loss` and `train/epoch_accuracy` of all that was read since the last call. Synchronises."""
        values = _means(self._sum_over(self._epoch.clone()), "train/epoch_loss", "train/epoch_accuracy")
        self._epoch.zero_()
        return values

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"window": self._window.clone(), "epoch": self._epoch.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self._window.copy_(state["window"])
        self._epoch.copy_(state["epoch"])


def _means(sums: torch.Tensor, loss_name: str, accuracy_name: str) -> dict[str, float]:
    loss, correct, images = sums.tolist()
    return {loss_name: loss / images, accuracy_name: correct / images} if images else {}


class ThroughputMeter:
    """Seconds of training, the part of them spent waiting for data, and images per second."""

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.wait_seconds = 0.0
        self.num_images = 0
        self._window_start = (0.0, 0.0, 0)
        self._waiting_since = self._working_since = 0.0

    def start(self) -> None:
        """Begin to wait for a batch."""
        self._waiting_since = time.perf_counter()

    def batch_arrived(self) -> None:
        """Begin the step."""
        self._working_since = time.perf_counter()

    def step_done(self, num_images: int) -> None:
        """Count the step that ends here. The time until the next `start` counts for nothing."""
        self.add(
            wait_seconds=self._working_since - self._waiting_since,
            step_seconds=time.perf_counter() - self._working_since,
            num_images=num_images,
        )

    def add(self, *, wait_seconds: float, step_seconds: float, num_images: int) -> None:
        """Count one step: seconds until its batch was there, seconds of its work, its images."""
        self.train_seconds += wait_seconds + step_seconds
        self.wait_seconds += wait_seconds
        self.num_images += num_images

    def read_window(self) -> dict[str, float]:
        """`perf/images_per_second` and `perf/data_wait_share` (0..1) since the last reading."""
        seconds, wait, images = (
            now - before
            for now, before in zip(
                (self.train_seconds, self.wait_seconds, self.num_images), self._window_start, strict=True
            )
        )
        self._window_start = (self.train_seconds, self.wait_seconds, self.num_images)
        return _rates(seconds, wait, images)

    def state_dict(self) -> dict[str, float]:
        return {
            "train_seconds": self.train_seconds,
            "wait_seconds": self.wait_seconds,
            "num_images": float(self.num_images),
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.train_seconds = state["train_seconds"]
        self.wait_seconds = state["wait_seconds"]
        self.num_images = int(state["num_images"])
        self._window_start = (self.train_seconds, self.wait_seconds, self.num_images)

    def totals(self) -> dict[str, float]:
        """The same over the whole run."""
        return _rates(self.train_seconds, self.wait_seconds, self.num_images)


def _rates(seconds: float, wait: float, images: float) -> dict[str, float]:
    if seconds <= 0:
        return {}
    return {"perf/images_per_second": images / seconds, "perf/data_wait_share": wait / seconds}
