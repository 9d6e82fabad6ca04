"""Trains ResNet-20 for 20 steps on real digits under one strategy, and stores losses, gradients and weights.

    python exactness.py single|mirrored|multi-worker REPLICAS float32|float64 FOLDER

The last of the 20 batches has 9 images where the others have 16: it does not divide by the replicas. Batches are small
so that in float32, too, gradients can be compared: among millions of activations a few lie so close to zero that
another order of summation moves them to the other side of a ReLU, which shows in the third digit of gradients. Logical
devices and the type of floats are set once a process, hence the script.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

BATCH, STEPS, LAST = 16, 20, 9


def main(strategy, replicas, dtype, folder):
    """Train, and write FOLDER/result.npz where this process is the one that writes."""
    if strategy == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    import keras

    keras.config.set_floatx(dtype)
    from keras_resnets.data import load_dataset
    from keras_resnets.training import Recipe, train

    class Recorder(keras.callbacks.Callback):
        """Losses (means of the epoch so far) of all steps, and momenta of the first: rate times gradients."""

        losses, gradients = [], {}

        def on_train_batch_end(self, batch, logs=None):
            self.losses.append(float(logs["loss"]))
            if batch == 0:
                momenta = [v for v in self.model.optimizer.variables if v.name.endswith("momentum")]
                self.gradients |= {f"gradient {i}": v.numpy() for i, v in enumerate(momenta)}

    recorder = Recorder()
    recipe = Recipe(
        model="resnet20", data="digits", epochs=1, batch_size=BATCH, drop_last=False, learning_rate=0.05,
        schedule="constant", pad=1, flip=True, mixup=0.2, ema=0.9,
    )  # fmt: skip
    digits = load_dataset("digits")
    data = replace(digits, train=digits.train.take(np.arange(BATCH * (STEPS - 1) + LAST)))
    model = train(recipe, folder, strategy=strategy, callbacks=[recorder], dataset=data, overwrite=True, verbose=False)
    assert len(recorder.losses) == STEPS
    weights = {f"weight {i}": v.numpy() for i, v in enumerate(model.variables)}
    if json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0) == 0:
        np.savez(Path(folder) / "result.npz", losses=recorder.losses, **recorder.gradients, **weights)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
