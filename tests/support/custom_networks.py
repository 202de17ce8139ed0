"""Networks as users write them, for the tests of model=custom."""

import torch
from torch import nn


class TwoLayers(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.body = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(torch.relu(self.body(images)).mean((2, 3)))


class KnowsItsImages(nn.Module):
    def __init__(self, num_classes, channels, *, image_size, depth=1):
        super().__init__()
        self.seen = (num_classes, channels, image_size, depth)
        self.only = nn.Linear(channels * image_size**2, num_classes)

    def forward(self, images):
        return self.only(images.flatten(1))


class HeadFirst(nn.Module):
    """The head is defined before the body, and one matrix of the body is fixed by its author."""

    def __init__(self, num_classes):
        super().__init__()
        self.classify = nn.Linear(4, num_classes)
        self.fixed = nn.Linear(3, 4)
        self.fixed.weight.requires_grad_(False)

    def forward(self, images):
        return self.classify(self.fixed(images.mean((2, 3))))


class Lazy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.LazyConv2d(6, 3)
        self.head = nn.LazyLinear(num_classes)

    def forward(self, images):
        return self.head(self.body(images).flatten(1))


class NeedsValues(nn.Module):
    """Cannot run on the meta device: what it does depends on the pixels."""

    def __init__(self, num_classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3, num_classes)

    def forward(self, images):
        if images.sum().item() > 1e9:
            raise ValueError("too bright")
        return self.head(self.drop(self.norm(images).mean((2, 3))))


class HeadByHand(nn.Module):
    """No layer at all, only a matrix."""

    def __init__(self, num_classes):
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(3, num_classes))

    def forward(self, images):
        return images.mean((2, 3)) @ self.matrix


class WrongOutputs(TwoLayers):
    def __init__(self, num_classes):
        super().__init__(10)


class Fails(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        raise RuntimeError("a bug of the user's own")


def small(num_classes):
    return TwoLayers(num_classes, width=2)


def no_module(num_classes):
    return [num_classes]


def no_classes(width):
    return TwoLayers(2, width)


NUMBER = 3
