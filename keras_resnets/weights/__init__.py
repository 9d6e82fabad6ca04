"""Pretrained weights: what is known of them, their download and their verification."""

from keras_resnets.weights.fetch import cached, download, verify
from keras_resnets.weights.records import IMAGENET, Result, Weights, WeightsError, find_weights, list_weights

__all__ = [
    "IMAGENET",
    "Result",
    "Weights",
    "WeightsError",
    "cached",
    "download",
    "find_weights",
    "list_weights",
    "verify",
]
