"""A network as a row of blocks that can be left out, exchanged, or passed by the gradient on one of two ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.models.layers import allow_depth
from keras_resnets.study.flow import block_outputs
from keras_resnets.study.outcome import StudyError

with extra("tensorflow"):
    import keras
    import tensorflow as tf

CHUNK = 500  # images at once


def compiled(function: Callable[[Any], Any], like: Any) -> Any:
    """A function of one tensor as a graph, for any number of rows of a Keras tensor's shape and type."""
    spec = tf.TensorSpec([None, *like.shape[1:]], like.dtype)
    return tf.function(function).get_concrete_function(spec)


class Block:
    """One block of a network.

    Args:
        model: the network.
        name: of the block, "conv3_block2".
        output: of its last layer.
    """

    def __init__(self, model: Any, name: str, output: Any) -> None:
        self.name = name
        inside = [layer for layer in model.layers if layer.name.startswith(f"{name}_")]
        first = inside[0].input
        self.input = first[0] if isinstance(first, list) else first
        self.output = output
        self.whole = keras.Model(self.input, output)
        self.addition = next((layer for layer in inside if isinstance(layer, keras.layers.Add)), None)
        self.removable = tuple(self.input.shape) == tuple(output.shape)

    @cached_property
    def run(self) -> Any:
        """The block as a graph, made when it is first asked for."""
        return compiled(partial(self.whole, training=False), self.input)

    def apart(self) -> tuple[Callable[[Any], tuple[Any, Any]], bool]:
        """A function of the block's input that gives (shortcut, residual), and whether a ReLU follows their sum.

        Raises:
            StudyError: in a plain network.
        """
        if self.addition is None:
            raise StudyError(f"{self.name} has no shortcut")
        shortcut, residual = self.addition.input
        way = None if shortcut is self.input else keras.Model(self.input, shortcut)
        branch = keras.Model(self.input, residual)

        def both(x: Any) -> tuple[Any, Any]:
            return x if way is None else way(x, training=False), branch(x, training=False)

        return both, self.addition.output is not self.output


class Blocks:
    """A classifier of the zoo, cut at its blocks: stem, blocks, head.

    Args:
        model: the network.

    Raises:
        StudyError: when it is not made of blocks that follow one another.
    """

    def __init__(self, model: Any) -> None:
        allow_depth(len(model.layers))
        layers = block_outputs(model)
        names = [layer.name.rpartition("_")[0] for layer in layers]
        if not all(name.startswith("conv") and "_block" in name for name in names):
            raise StudyError(f"{model.name} is no network of this zoo with blocks: its layers are {names[0]}, …")
        self.model = model
        self.blocks = [Block(model, name, layer.output) for name, layer in zip(names, layers, strict=True)]
        self.stem = keras.Model(model.input, self.blocks[0].input)
        self.head = keras.Model(self.blocks[-1].output, model.output)

    @cached_property
    def _run_stem(self) -> Any:
        return compiled(partial(self.stem, training=False), self.stem.inputs[0])

    @cached_property
    def _run_head(self) -> Any:
        return compiled(partial(self.head, training=False), self.head.inputs[0])

    @property
    def removable(self) -> list[int]:
        """Numbers of the blocks whose input and output have one shape, so that the network runs without them."""
        return [number for number, block in enumerate(self.blocks) if block.removable]

    def before_each(self, images: NDArray[np.float32]) -> list[Any]:
        """What enters each block, and what enters the head."""
        values = [self._run_stem(tf.constant(images))]
        for block in self.blocks:
            values.append(block.run(values[-1]))
        return values

    def from_block(self, value: Any, order: Sequence[int]) -> NDArray[np.float32]:
        """Probabilities, when the blocks with these numbers follow on `value`."""
        for number in order:
            value = self.blocks[number].run(value)
        return np.asarray(self._run_head(value))

    def correct(
        self, images: NDArray[np.float32], labels: NDArray[np.int64], orders: Sequence[Sequence[int]]
    ) -> NDArray[np.int64]:
        """How many images each order of blocks classifies correctly.

        What is common to an order and the network itself at the beginning is computed once.
        """
        counts = np.zeros(len(orders), np.int64)
        for first in range(0, len(images), CHUNK):
            part, truth = images[first : first + CHUNK], labels[first : first + CHUNK]
            values = self.before_each(part)
            for i, order in enumerate(orders):
                same = next((n for n, number in enumerate(order) if number != n), len(order))
                scores = self.from_block(values[same], order[same:])
                counts[i] += int((scores.argmax(1) == truth).sum())
        return counts
