"""Has inference become slower on this machine since this was last run?

    python benchmarks/regressions.py [--rounds 6] [--renew]

ResNet-20 in float32 and ResNet-50 in float32 and int8, exported by this checkout, measured by `keras-resnets bench` and
compared with the last result of this machine, which lies in build/regressions. The first run only writes that. A result
without regressions takes its place; one with them does so with --renew.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from keras_resnets.serving.conditions import conditions, fingerprint

KEPT = Path(__file__).parents[1] / "build" / "regressions"
MAKE = """
import sys, numpy as np, keras, keras_resnets
from keras_resnets.export import Gate, to_bundle
keras.utils.set_random_seed(0)
noise = np.random.default_rng(0)
for name, side, lower in (("ResNet20", 32, []), ("ResNet50", 224, ["int8"])):
    model = getattr(keras_resnets, name)()
    keras_resnets.update_batch_norm(model, [noise.normal(size=(8, side, side, 3)).astype("float32")])
    gate = Gate(0.0, 1.0)  # random weights decide nothing
    to_bundle(model, sys.argv[1] + "/" + name.lower(), saved_model=False, precisions=lower, gate=gate)
"""
SLOWER = 3  # status of `keras-resnets bench`


def main() -> int:
    """Parse the options; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--renew", action="store_true", help="keep this result although something became slower")
    options = parser.parse_args()
    kept = KEPT / f"{fingerprint(conditions())}.json"
    with tempfile.TemporaryDirectory() as folder:
        print("exporting", flush=True)
        subprocess.run([sys.executable, "-c", MAKE, folder], check=True, capture_output=True)
        command = [sys.executable, "-m", "keras_resnets.cli", "bench", f"{folder}/resnet20", f"{folder}/resnet50"]
        command += ["--batch", "1,8", "--seconds", "1", "--rounds", str(options.rounds), "--out", f"{folder}/out"]
        command += ["--baseline", str(kept)] if kept.exists() else []
        status = subprocess.run(command, check=False).returncode
        if status == 0 or (status == SLOWER and options.renew):
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(Path(folder, "out", "bench.json").read_bytes())
            print(f"kept as {kept}")
    return status


if __name__ == "__main__":
    sys.exit(main())
