"""Exports a small network in processes of their own, which are killed where a test says.

The parent loads TensorFlow once and forks, before TensorFlow has started any thread.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import keras

import keras_resnets
from keras_resnets import Preprocessing, atomic
from keras_resnets.export import bundle
from keras_resnets.export import onnx as converter

sys.path.insert(0, str(Path(__file__).parents[1]))
from suicide import leave, on_call, patch, suicide

GREY = Preprocessing((8, 8), 1, scale=1 / 255, mean=(0.5,), std=(0.25,))


# The export's steps in their order; the process ends behind each of them.
STEPS = {
    "nothing but the draft": lambda: patch(bundle, "to_onnx", suicide),
    "the skeleton": lambda: patch(converter, "_convert_graph", on_call(1, converter._convert_graph, before=False)),
    "the optimized skeleton": lambda: patch(converter, "_optimize", on_call(1, converter._optimize, before=False)),
    "model.onnx": lambda: patch(bundle, "to_onnx", on_call(1, bundle.to_onnx, before=False)),
    "the SavedModel": lambda: patch(bundle, "to_saved_model", on_call(1, bundle.to_saved_model, before=False)),
    "the verification": lambda: patch(bundle, "compare", on_call(1, bundle.compare, before=False)),
    "the golden sample": lambda: patch(bundle, "_write_golden", on_call(1, bundle._write_golden, before=False)),
    "the report": lambda: patch(bundle, "write_report", on_call(1, bundle.write_report, before=False)),
    "the engines": lambda: patch(bundle, "write_engine", on_call(1, bundle.write_engine, before=False)),
    "the hashes": lambda: patch(bundle, "seal", on_call(1, bundle.seal, before=False)),
    "the first file on the disk": lambda: patch(atomic, "_sync", on_call(3, atomic._sync, before=False)),
    # The SavedModel's own is the first.
    "everything but the swap": lambda: patch(atomic, "_swap", on_call(2, atomic._swap)),
    "the swap": lambda: patch(atomic, "_swap", on_call(2, atomic._swap, before=False)),
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
        leave(code)


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
