"""Networks in which the backbone and the head can, or cannot, be told apart."""

import torch
from torch import nn


def save_weights(network, folder):
    """Save the weights of a new `network` for seven classes, and return the override that loads them."""
    torch.manual_seed(0)
    path = folder / "weights.pt"
    torch.save(network(7, 1).state_dict(), path)
    return f"model.weights={path}"


class Photographic(nn.Module):
    """A small convolutional network with all that training mode changes, in the backbone and in the head."""

    def __init__(self, num_classes, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(256, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, num_classes)
        )

    def forward(self, images):
        return self.classifier(self.body(images))


class MapHead(Photographic):
    """The head takes maps, not vectors."""

    def __init__(self, num_classes, channels):
        super().__init__(num_classes, channels)
        self.classifier = nn.Sequential(
            nn.Conv2d(16, num_classes, 3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )


class Neighbourly(Photographic):
    """Also in evaluation mode, batch norm takes the statistics of the batch at hand."""

    def __init__(self, num_classes, channels):
        super().__init__(num_classes, channels)
        self.body[1] = nn.BatchNorm2d(8, track_running_stats=False)


class GoesOn(Photographic):
    """Something follows the head."""

    def forward(self, images):
        return super().forward(images).clamp(min=0)


class GoesOnInPlace(Photographic):
    def forward(self, images):
        return super().forward(images).mul_(2)


class CallsTwice(Photographic):
    """The head sees each image twice, as it is and mirrored."""

    def forward(self, images):
        return super().forward(images) + super().forward(images.flip(3))


class NeverCalls(Photographic):
    """The head's weights are used without the head."""

    def forward(self, images):
        return nn.functional.linear(self.body(images).mean((2, 3)), self.classifier[1].weight[:10, :16])


class TwoInputs(nn.Module):
    """The head wants to know more than the features."""

    class Head(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.linear = nn.Linear(64, num_classes)

        def forward(self, features, *, scale):
            return self.linear(features) * scale

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Flatten()
        self.head = self.Head(num_classes)

    def forward(self, images):
        return self.head(self.body(images), scale=2.0)


class Noisy(Photographic):
    """The backbone draws random numbers in evaluation mode too."""

    def forward(self, images):
        return super().forward(images + torch.randn_like(images))


class OneUntied(nn.Module):
    """The head is a matrix that the backbone uses too, under another name."""

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(64, 10, bias=False)
        self.tied = nn.Linear(10, 64, bias=False)
        self.tied.weight = nn.Parameter(torch.randn(64, 10))
        self.again = self.head

    def forward(self, images):
        return self.head(self.tied(self.again(images.flatten(1))))


class LinearHead(nn.Module):
    """A small convolutional backbone under one linear layer."""

    def __init__(self, num_classes, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(48, num_classes)

    def forward(self, images):
        return self.classifier(self.drop(self.body(images)))


class PlainHead(nn.Module):
    """Two linear layers: the same in training and in evaluation."""

    def __init__(self, num_classes, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 32), nn.ReLU())
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, images):
        return self.classifier(self.body(images))
