"""Training runs on real digits: what they write, that they learn, and how they go on."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnets import load_model
from keras_resnets.data import DataError, load_dataset
from keras_resnets.training import RECIPES, TrainingError, evaluate_model, train
from keras_resnets.training.checkpoint import read_newest
from keras_resnets.training.course import SkippedWarning
from keras_resnets.training.records import draw_curves
from keras_resnets.training.steplog import read_steps

SHORT = replace(RECIPES["digits"](), epochs=4, warmup_epochs=1, validation=100, batch_size=64)


class Recorder(keras.callbacks.Callback):
    """Counts what Keras's callbacks are told."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append("begin")

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append("batch")

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch", logs["val_accuracy"]))

    def on_train_end(self, logs=None):
        self.calls.append("end")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, recorder = tmp_path_factory.mktemp("runs") / "run", Recorder()
    model = train(SHORT, folder, callbacks=[recorder], log_steps=7, verbose=False)
    return folder, model, recorder


def test_a_run_learns_and_writes_its_records(finished):
    folder, model, _ = finished
    history = json.loads((folder / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert json.loads((folder / "recipe.json").read_text())["validation"] == 100
    test = json.loads((folder / "evaluation.json").read_text())["test"]
    assert test["accuracy"] > 0.7
    assert test == pytest.approx(evaluate_model(model, load_dataset("digits").test))
    assert sorted(file.name for file in folder.iterdir()) == [
        ".lock", "checkpoints", "curves.png", "environment.json", "evaluation.json", "history.json", "log.csv",
        "model.keras", "recipe.json", "steps.csv", "tensorboard",
    ]  # fmt: skip
    assert [file.name for file in (folder / "checkpoints").iterdir() if file.name.startswith(".")] == []


def test_the_logs_say_the_same_as_the_history(finished):
    folder, _, _ = finished
    history = json.loads((folder / "history.json").read_text())
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, logged in zip(history, rows, strict=True):
        assert {name: float(logged[name]) for name in row} == row
        assert float(logged["seconds"]) > 0
        assert float(logged["images_per_second"]) > 0
    (events,) = (folder / "tensorboard").iterdir()
    scalars = {}
    for event in tf.compat.v1.train.summary_iterator(str(events)):
        for value in event.summary.value:
            scalars.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
    expected = [(row["epoch"], pytest.approx(row["val_loss"], rel=1e-6)) for row in history]
    assert scalars["val_loss"] == expected
    assert [step for step, _ in scalars["steps/loss"]] == [row["step"] for row in read_steps(folder / "steps.csv")]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["keras"] == keras.__version__
    assert environment["replicas"] == 1


def test_the_log_of_steps_adds_up_to_the_history(finished):
    folder, _, recorder = finished
    rows, history = read_steps(folder / "steps.csv"), json.loads((folder / "history.json").read_text())
    total = recorder.calls.count("batch")
    assert [row["step"] for row in rows] == list(range(7, total + 1, 7))
    assert total % 7 == 3  # so that rows begin in one epoch and end in the next
    for name in ("loss", "accuracy"):
        seen = sum(7 * row[name] for row in rows)
        everything = sum(total / 4 * row[name] for row in history)
        assert seen < everything < seen + 3 * 1.5 * max(row[name] for row in rows)
    assert rows[0]["learning_rate"] < max(row["learning_rate"] for row in rows)


def test_a_row_that_a_kill_cut_off_is_left_out(tmp_path):
    (tmp_path / "steps.csv").write_text("step,loss,accuracy,learning_rate\n10,2.5,0.1,0.1\n20,2.4,0.")
    assert [row["step"] for row in read_steps(tmp_path / "steps.csv")] == [10]
    assert read_steps(tmp_path / "none.csv") == []


def test_the_curves_are_a_picture(finished):
    with Image.open(finished[0] / "curves.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(100_000)) > 50


def test_a_run_that_was_ended_in_its_first_epoch_has_curves_too(tmp_path):
    steps = [{"step": 20 * i, "loss": 3 / i, "accuracy": 0.1 * i, "learning_rate": 0.1} for i in range(1, 6)]
    draw_curves([], tmp_path / "one.png", "one", steps[:1], 400)
    draw_curves([], tmp_path / "five.png", "five", steps, 400)
    sizes = []
    for name in ("one.png", "five.png"):
        with Image.open(tmp_path / name) as picture:
            blue = np.asarray(picture.convert("RGB")).astype(int) @ [-1, 0, 1] > 100
            sizes.append(blue.sum())
    assert sizes[1] > sizes[0] + 100


def test_the_checkpoint_is_the_trained_model_with_its_preprocessing(finished):
    folder, model, _ = finished
    loaded, data = load_model(folder / "model.keras"), load_dataset("digits")
    assert loaded.preprocessing == data.preprocessing
    assert tuple(loaded.labels) == data.class_names
    for a, b in zip(model.variables, loaded.variables, strict=True):
        assert np.array_equal(a, b)


def test_keras_callbacks_are_called(finished):
    _, _, recorder = finished
    steps = (len(load_dataset("digits").train) - SHORT.validation) // SHORT.batch_size
    assert recorder.calls[0] == "begin"
    assert recorder.calls[-1] == "end"
    assert recorder.calls.count("batch") == SHORT.epochs * steps
    assert len([call for call in recorder.calls if call[0] == "epoch"]) == SHORT.epochs


def test_early_stopping_stops(tmp_path):
    stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9)
    train(replace(SHORT, epochs=3), tmp_path / "run", callbacks=[stop], verbose=False)
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())) == 2


def test_what_is_evaluated_is_what_is_saved(tmp_path):
    """Restored weights come with the last callback, after the last epoch's checkpoint."""
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=5, restore_best_weights=True)
    train(replace(SHORT, epochs=2), tmp_path / "run", callbacks=[stop], verbose=False)
    saved = load_model(tmp_path / "run" / "model.keras")
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())["test"]
    assert evaluate_model(saved, load_dataset("digits").test)["loss"] == pytest.approx(written["loss"], rel=1e-5)


def test_a_finished_run_is_not_overwritten_unasked(finished):
    folder, _, _ = finished
    before = (folder / "model.keras").read_bytes()
    with pytest.raises(TrainingError, match="already holds a finished run"):
        train(SHORT, folder, verbose=False)
    assert (folder / "model.keras").read_bytes() == before


class Stop(keras.callbacks.Callback):
    """Ends the run as a fault in a callback would."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise RuntimeError("a fault")


def begun(folder, recipe, **more):
    with pytest.raises(RuntimeError, match="a fault"):
        train(recipe, folder, callbacks=[Stop(1)], verbose=False, **more)


def test_a_begun_run_goes_on_only_with_its_own_recipe(tmp_path):
    folder = tmp_path / "run"
    begun(folder, SHORT)
    rows = json.loads((folder / "history.json").read_text())
    assert len(rows) == 1
    with pytest.raises(TrainingError, match=r"another recipe: learning_rate 0.1 \(now 0.2\)"):
        train(replace(SHORT, learning_rate=0.2), folder, verbose=False)
    with pytest.raises(TrainingError, match="already holds a run"):
        train(SHORT, folder, resume=False, verbose=False)
    epochs = Recorder()
    train(SHORT, folder, callbacks=[epochs], verbose=False)
    assert len([call for call in epochs.calls if call[0] == "epoch"]) == 3
    history = json.loads((folder / "history.json").read_text())
    assert history[:1] == rows
    assert len(history) == 4


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    begun(folder, SHORT)
    (folder / "notes.txt").write_text("mine")
    train(replace(SHORT, epochs=2, learning_rate=0.2), folder, overwrite=True, verbose=False)
    assert (folder / "notes.txt").read_text() == "mine"
    assert json.loads((folder / "recipe.json").read_text())["learning_rate"] == 0.2
    assert len(json.loads((folder / "history.json").read_text())) == 2


def test_the_best_epoch_is_kept(tmp_path):
    model = train(replace(SHORT, epochs=3), tmp_path / "run", keep_best=True, verbose=False)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    best = load_model(tmp_path / "run" / "best.keras")
    found = evaluate_model(best, load_dataset("digits").hold_out(100).validation)
    assert found["accuracy"] == max(row["val_accuracy"] for row in history)
    assert model.input_shape == best.input_shape
    with pytest.raises(TrainingError, match="held-out"):
        train(replace(SHORT, validation=0), tmp_path / "other", keep_best=True, verbose=False)


def test_with_an_average_the_average_is_saved(tmp_path):
    recipe = replace(SHORT, epochs=2, ema=0.9)
    model = train(recipe, tmp_path / "run", verbose=False)
    stored = read_newest(tmp_path / "run").arrays
    averages = [array for name, array in sorted(stored.items()) if name.startswith("average/")]
    floats = [v for v in model.variables if "float" in str(v.dtype)]
    for a, b in zip(floats, averages, strict=True):
        assert np.array_equal(a, b)
    last = json.loads((tmp_path / "run" / "history.json").read_text())[-1]
    found = evaluate_model(model, load_dataset("digits").hold_out(100).validation)
    assert found["loss"] == pytest.approx(last["val_loss"], rel=1e-5)


def test_callbacks_may_set_a_constant_rate(tmp_path):
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 * 0.5**epoch)
    train(
        replace(SHORT, epochs=3, warmup_epochs=0, schedule="constant"),
        tmp_path / "run",
        callbacks=[halve],
        verbose=False,
    )
    rates = [row["learning_rate"] for row in json.loads((tmp_path / "run" / "history.json").read_text())]
    assert rates == pytest.approx([0.1, 0.05, 0.025])


def test_metrics_are_in_the_records(tmp_path):
    metric = keras.metrics.TopKCategoricalAccuracy(3, name="top3")
    train(replace(SHORT, epochs=2), tmp_path / "run", metrics=[metric], verbose=False)
    row = json.loads((tmp_path / "run" / "history.json").read_text())[-1]
    assert row["accuracy"] <= row["top3"] <= 1
    assert row["val_accuracy"] <= row["val_top3"] <= 1
    assert "top3" in json.loads((tmp_path / "run" / "evaluation.json").read_text())["test"]


SECOND = """
import sys, pathlib
from keras_resnets.training.records import only_one
with only_one(pathlib.Path(sys.argv[1])):
    print("inside")
"""


def test_two_processes_do_not_train_into_one_folder(tmp_path):
    from keras_resnets.training.records import only_one

    with only_one(tmp_path):
        done = subprocess.run([sys.executable, "-c", SECOND, tmp_path], capture_output=True, text=True, check=False)
    assert "another process is training into" in done.stderr


def test_the_same_seed_starts_from_the_same_weights_and_order(tmp_path):
    short = replace(SHORT, epochs=1, warmup_epochs=0, learning_rate=1e-3, validation=0)
    losses = []
    for seed in (1, 1, 2):
        train(replace(short, seed=seed), tmp_path / "run", verbose=False, overwrite=True)
        losses.append(json.loads((tmp_path / "run" / "history.json").read_text())[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert abs(losses[0] - losses[2]) > 1e-3 * losses[0]


def test_xla_trains_with_deterministic_operations_which_end_with_the_run(tmp_path):
    train(replace(SHORT, epochs=1, warmup_epochs=0, xla=True), tmp_path / "run", verbose=False)
    assert json.loads((tmp_path / "run" / "history.json").read_text())[0]["loss"] < np.log(10)
    # Deterministic ones refuse to draw numbers that nobody seeded.
    keras.utils.set_random_seed(0)
    tf.random.set_seed(None)
    assert tf.raw_ops.RandomUniform(shape=[2], dtype=tf.float32).shape == [2]


def test_what_cannot_be_trained_says_why_before_writing(tmp_path):
    for wrong, message in (
        ({"batch_size": 5000}, "more than the 1337 training images"),
        ({"model": "resnet21"}, "resnet20"),
        ({"data": "digit"}, "digits"),
        ({"validation": 1437}, "hold out"),
    ):
        with pytest.raises((TrainingError, ValueError), match=message):
            train(replace(SHORT, **wrong), tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


def test_every_recipe_names_a_model_and_data_that_exist():
    from keras_resnets.data import LOADERS
    from keras_resnets.models import model_info

    for make in RECIPES.values():
        assert model_info(make().model)
        assert make().data in LOADERS or make().data.startswith("imagenet:")
        assert re.search(r"accuracy|error", make.__doc__)
        assert "Command: keras-resnets train --recipe " + make.__name__ in make.__doc__
        assert "Hardware and time:" in make.__doc__


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "plainnet20", "drop_path_rate": 0.1}, "plainnet20 has no drop_path_rate"),
        ({"model": "vit_ti16", "shortcut": "A"}, "vit_ti16 has no shortcut"),
        ({"variant": "v3"}, "variant must be one of"),
    ],
)
def test_options_that_a_network_lacks_are_refused(tmp_path, fields, message):
    with pytest.raises((TrainingError, ValueError), match=message):
        train(replace(SHORT, **fields), tmp_path / "run", verbose=False)


@pytest.mark.parametrize("replicas", [1, 2])
def test_networks_train_in_plain_fit_too(tmp_path, replicas):
    """In compile() and fit(), alone and under MirroredStrategy; logical devices are set once a process."""
    done = subprocess.run([sys.executable, "-c", FIT, str(replicas)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = json.loads(done.stdout.splitlines()[-1])
    assert losses[-1] < 0.8 * losses[0]


FIT = """
import json, sys
import tensorflow as tf
replicas = int(sys.argv[1])
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
import keras
import keras_resnets
from keras_resnets.data import DataError, load_dataset
data = load_dataset("digits")
strategy = tf.distribute.get_strategy()
if replicas > 1:
    strategy = tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])
assert strategy.num_replicas_in_sync == replicas
with strategy.scope():
    model = keras_resnets.ResNet20(input_shape=(8, 8, 1), classes=10)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
images = data.preprocessing.normalize(data.train.images)
history = model.fit(images[:1408], data.train.labels[:1408], batch_size=64, epochs=4, verbose=0)
print(json.dumps(history.history["loss"]))
"""


FILES = replace(SHORT, image_size=8, epochs=1, warmup_epochs=0, validation=0, batch_size=50)


@pytest.fixture
def pictures(tmp_path):
    """A folder of digits as PNG files, ten a class to train and one to test."""
    data = load_dataset("digits")
    for part, split, each in (("train", data.train, 10), ("test", data.test, 1)):
        for digit in range(10):
            folder = tmp_path / "pictures" / part / str(digit)
            folder.mkdir(parents=True)
            for number, row in enumerate(np.flatnonzero(split.labels == digit)[:each]):
                Image.fromarray(split.images[row, :, :, 0]).convert("RGB").save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_corrupt_picture_is_named_wherever_it_is(tmp_path, pictures, part):
    (pictures / part / "3" / "0.png").write_bytes(b"no picture")
    recipe = replace(FILES, data=f"folder:{pictures}")
    with pytest.raises(DataError, match=r"3/0\.png"):
        train(recipe, tmp_path / "run", verbose=False)


def test_skipped_pictures_are_counted_and_named(tmp_path, pictures):
    (pictures / "train" / "3" / "0.png").write_bytes(b"no picture")
    recipe = replace(FILES, data=f"folder:{pictures}")
    with pytest.warns(SkippedWarning, match=r"epoch 1: 1 unreadable: .*3/0\.png"):
        train(replace(recipe, on_corrupt="skip"), tmp_path / "run", verbose=False)
    with (tmp_path / "run" / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["skipped"] == "1"
