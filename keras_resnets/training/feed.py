"""Gives the replicas of this process their images, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from keras_resnets.data import Dataset
from keras_resnets.data.corrupt import CorruptSamples
from keras_resnets.data.dataset import Samples
from keras_resnets.data.pipeline import Augmentation, evaluation_batches, explain, training_batches
from keras_resnets.data.plan import Shard, steps_per_epoch
from keras_resnets.extras import extra
from keras_resnets.training.config import Recipe
from keras_resnets.training.determinism import op_determinism
from keras_resnets.training.strategy import shard

with extra("tensorflow"):
    import tensorflow as tf

EVALUATION_BATCH = 256


class Feed:
    """The images of a recipe for the replicas that this process feeds.

    Args:
        recipe: for batch size, seed and augmentation.
        data: with held-out images where the recipe asks for them.
        strategy: a tf.distribute strategy.
    """

    def __init__(self, recipe: Recipe, data: Dataset, strategy: Any) -> None:
        self.recipe, self.data, self.strategy = recipe, data, strategy
        self.shard = Shard(*shard(strategy))
        self.corrupt = CorruptSamples()  # of the running epoch
        self.steps = steps_per_epoch(len(data.train), recipe.batch_size, recipe.drop_last)
        self._augmentation = Augmentation(
            pad=recipe.pad,
            flip=recipe.flip,
            crop=recipe.crop,
            min_area=recipe.min_area,
            rand_augment=(recipe.rand_augment, recipe.rand_augment_magnitude) if recipe.rand_augment else None,
            random_erasing=recipe.random_erasing,
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
        )

    def training(self, epoch: int, start: int = 0) -> Any:
        """An iterator over an epoch's steps from `start` on: (images, labels or targets), distributed."""
        self.corrupt = CorruptSamples()
        return self._iterator(
            training_batches(
                self.data.train,
                self.data.preprocessing,
                self._augmentation,
                self.recipe.batch_size,
                self.recipe.seed,
                epoch,
                shard=self.shard,
                start=start,
                drop_last=self.recipe.drop_last,
                classes=len(self.data.class_names),
                on_corrupt=self.recipe.on_corrupt,
                corrupt=self.corrupt,
            )
        )

    def evaluation(self, split: Samples) -> Any:
        """An iterator over all images of a split, in order and unchanged, distributed."""
        return self._iterator(evaluation_batches(split, self.data.preprocessing, EVALUATION_BATCH, shard=self.shard))

    def _iterator(self, batches: Any) -> Any:
        if self.shard.total > 1:
            own = batches
            batches = self.strategy.distribute_datasets_from_function(lambda context: own)
        # With it, tf.data would read files one after the other: it cannot know that these batches are the same
        # however many threads read them.
        with op_determinism(False):
            return iter(batches)

    @contextmanager
    def explained(self, split: Samples) -> Iterator[None]:
        """Turn TensorFlow's report of a corrupt image of a split into a DataError that names it."""
        try:
            yield
        except tf.errors.OpError as error:
            if found := explain(error, split):
                raise found from error
            raise
