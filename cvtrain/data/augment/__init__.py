"""Augmentation of training images: per image in the workers, per batch on the device."""

from cvtrain.data.augment.batch import BatchTransform
from cvtrain.data.augment.build import build_batch_transform, build_train_transform
from cvtrain.data.augment.pipeline import TrainTransform

__all__ = ["BatchTransform", "TrainTransform", "build_batch_transform", "build_train_transform"]
