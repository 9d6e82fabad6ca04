"""Runs a short training in processes of its own, which are killed where a test says.

The parent loads TensorFlow once and forks, before TensorFlow has started any thread.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

import keras_resnets.training.run as running
from keras_resnets import atomic
from keras_resnets.training import Recipe, TrainingStopped, checkpoint, course
from keras_resnets.training.loop import Loop

sys.path.insert(0, str(Path(__file__).parents[1]))
from suicide import leave, on_call, patch, suicide

# Dropout, augmentation and an average, so that every kind of state is there.
RECIPE = Recipe(
    model="resnet20", data="digits", epochs=2, batch_size=128, learning_rate=0.05, validation=200, pad=1, flip=True,
    dropout_rate=0.2, ema=0.9, seed=3,
)  # fmt: skip
SAVE_STEPS, LOG_STEPS = 2, 3


def half_written(number):
    """save_file that writes half of its bytes and ends the process, at its call with this number."""
    calls = iter(range(1, 10**9))
    whole = checkpoint.save_file

    def save(arrays, file, metadata):
        whole(arrays, file, metadata)
        if next(calls) == number:
            os.truncate(file, Path(file).stat().st_size // 2)
            suicide()

    return save


PHASES = {
    "while the model is built": lambda: patch(running, "build_model", suicide),
    "before the first step": lambda: patch(Loop, "train", suicide),
    "in the first epoch": lambda: patch(course.Course, "_save_due", on_call(3, course.Course._save_due)),
    "in the second epoch": lambda: patch(course.Course, "_save_due", on_call(14, course.Course._save_due)),
    "in the evaluation of held-out images": lambda: patch(Loop, "_metric_states", on_call(2, Loop._metric_states)),
    "before a checkpoint is written": lambda: patch(checkpoint, "save_file", on_call(3, checkpoint.save_file)),
    "with half a checkpoint written": lambda: patch(checkpoint, "save_file", half_written(3)),
    "with a checkpoint written, not yet on the disk": lambda: patch(
        checkpoint, "save_file", on_call(3, checkpoint.save_file, before=False)
    ),
    "with a checkpoint on the disk, not yet in place": lambda: patch(Path, "replace", on_call(6, Path.replace)),
    "with a checkpoint in place": lambda: patch(Path, "replace", on_call(6, Path.replace, before=False)),
    "before old checkpoints are deleted": lambda: patch(
        checkpoint, "list_checkpoints", on_call(4, checkpoint.list_checkpoints)
    ),
    "before the history is written": lambda: patch(running.Records, "epoch", on_call(1, running.Records.epoch)),
    "before the model is saved": lambda: patch(course, "save_model", suicide),
    "before the test images are evaluated": lambda: patch(course, "save_model", on_call(1, course.save_model, False)),
    "before the result is written": lambda: patch(course, "write_json", suicide),
}


def child(folder, phase):
    """Train; never returns."""
    code = 1
    try:
        if phase:
            PHASES[phase]()
        running.train(RECIPE, folder, strategy="single", save_steps=SAVE_STEPS, log_steps=LOG_STEPS, verbose=False)
        code = 0
    except TrainingStopped:
        code = os.EX_TEMPFAIL
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def start(folder, phase=""):
    """Start a run; returns its process number."""
    number = os.fork()
    if number == 0:
        child(folder, phase)
    return number


def ended(number):
    """Wait for a run; returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def main():
    """Answer commands on standard input, one JSON list a line: [folder, phase], or [folder, seconds, signal], where a
    negative number means as soon as there is a checkpoint."""
    assert atomic  # loaded before the forks
    for line in sys.stdin:
        folder, how, *rest = json.loads(line)
        if isinstance(how, str):
            code = ended(start(folder, how))
        else:
            began, number = time.monotonic(), start(folder)
            while os.waitpid(number, os.WNOHANG) == (0, 0):
                time.sleep(0.005)
                if checkpoint.list_checkpoints(Path(folder)) if how < 0 else time.monotonic() - began > how:
                    break
            try:
                os.kill(number, rest[0])
                code = ended(number)
            except (ProcessLookupError, ChildProcessError):
                code = 0  # it had ended by itself
        print(json.dumps(code), flush=True)


if __name__ == "__main__":
    main()
