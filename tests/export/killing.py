"""Exports a small network in processes of their own, which are killed where a test says.

The parent loads TensorFlow once and forks, before TensorFlow has started any thread.
"""

import json
import os
import signal
import sys
import time
import traceback

import keras

import keras_resnets
from keras_resnets import Preprocessing, atomic
from keras_resnets.export import bundle
from keras_resnets.export import onnx as converter

GREY = Preprocessing((8, 8), 1, scale=1 / 255, mean=(0.5,), std=(0.25,))


def suicide(*_, **__):
    """End as power failures do."""
    os.kill(os.getpid(), signal.SIGKILL)


def behind(function, number=1, before=False):
    """The function, which ends the process behind (or before) its call with this number."""
    calls = iter(range(1, 10**9))

    def wrapped(*args, **kwargs):
        last = next(calls) == number
        if last and before:
            suicide()
        result = function(*args, **kwargs)
        if last:
            suicide()
        return result

    return wrapped


def patch(owner, name, wrapped):
    """Set an attribute for the rest of the process."""
    setattr(owner, name, wrapped)


# The export's steps in their order; the process ends behind each of them.
STEPS = {
    "nothing but the draft": lambda: patch(bundle, "to_onnx", suicide),
    "the skeleton": lambda: patch(converter, "_convert_graph", behind(converter._convert_graph)),
    "the optimized skeleton": lambda: patch(converter, "_optimize", behind(converter._optimize)),
    "model.onnx": lambda: patch(bundle, "to_onnx", behind(bundle.to_onnx)),
    "the SavedModel": lambda: patch(bundle, "to_saved_model", behind(bundle.to_saved_model)),
    "the verification": lambda: patch(bundle, "compare", behind(bundle.compare)),
    "the golden sample": lambda: patch(bundle, "_write_golden", behind(bundle._write_golden)),
    "the report": lambda: patch(bundle, "write_report", behind(bundle.write_report)),
    "the engines": lambda: patch(bundle, "write_engine", behind(bundle.write_engine)),
    "the hashes": lambda: patch(bundle, "seal", behind(bundle.seal)),
    "the first file on the disk": lambda: patch(atomic, "_sync", behind(atomic._sync, 3)),
    # The SavedModel's own is the first.
    "everything but the swap": lambda: patch(atomic, "_swap", behind(atomic._swap, 2, before=True)),
    "the swap": lambda: patch(atomic, "_swap", behind(atomic._swap, 2)),
}


def child(folder, step):
    """Export; never returns."""
    code = 1
    try:
        if step:
            STEPS[step]()
        keras.utils.set_random_seed(os.getpid())  # each export is another network
        model = keras_resnets.ResNet20(input_shape=(8, 8, 1), classes=3)
        bundle.to_bundle(model, folder, preprocessing=GREY, engines=["triton"], overwrite=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main():
    """Answer commands on standard input, one JSON list a line: [folder, step], or [folder, seconds until the kill]."""
    for line in sys.stdin:
        folder, how = json.loads(line)
        number = os.fork()
        if number == 0:
            child(folder, how if isinstance(how, str) else "")
        if not isinstance(how, str):
            time.sleep(how)
            os.kill(number, signal.SIGKILL)  # not yet waited for, so the number is still its own
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])), flush=True)


if __name__ == "__main__":
    main()
