"""What `keras-resnets tune` finds for ResNet-50 on this machine, and what that serves.

    python benchmarks/tune_resnet50.py [--budget 10m]

The network has to decide something, or no lower precision could be judged: its convolutions are random, their residual
branches damped, and its classifier is fitted (scikit-learn's logistic regression) to tell handwritten digits apart,
enlarged to 224×224. The bundle's int8 is calibrated on other digits, and its top-1 measured on others again. `tune` may
lose half a percentage point.

Then ONNX Runtime's defaults in float32 and the server with what was found are measured again, in turn, three times; the
result goes to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from paired import RESULTS, cores
from rich.console import Console

ROUNDS, SECONDS = 3, 4.0
MAKE = """
import sys, numpy as np, keras, keras_resnets
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from keras_resnets import Preprocessing
from keras_resnets.export import Gate, to_bundle
keras.utils.set_random_seed(0)
digits = load_digits()
images = np.kron(digits.images / 16 * 255, np.ones((28, 28))).astype(np.uint8)[..., None].repeat(3, axis=-1)
how = Preprocessing.preset("torch", 224)
model = keras_resnets.ResNet50(classes=10, classifier_activation=None)
keras_resnets.damp_residuals(model, 0.3)
keras_resnets.update_batch_norm(model, [how(list(images[:64]))])
features = keras.Model(model.input, model.layers[-2].output)
known = features.predict(how(list(images[:600])), batch_size=50, verbose=0)
scale = StandardScaler().fit(known)
fitted = LogisticRegression(C=0.1, max_iter=2000).fit(scale.transform(known), digits.target[:600])
kernel = fitted.coef_.T / scale.scale_[:, None]
model.layers[-1].set_weights([kernel.astype("float32"), (fitted.intercept_ - scale.mean_ @ kernel).astype("float32")])
to_bundle(model, sys.argv[1], preprocessing=how, images=list(images[600:1000]), targets=digits.target[600:1000],
          saved_model=False, precisions=["int8"], gate=Gate(agreement=0.95))
"""


def main() -> None:
    """Parse the options; see the module's docstring."""
    from keras_resnets.serving import benchmark, tuned
    from keras_resnets.serving.contender import Configuration
    from keras_resnets.serving.scenarios import run_apart
    from keras_resnets.serving.tune import SERVED, serving

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--bundle", type=Path, help="one that a run before wrote, or where to write it")
    options = parser.parse_args()
    console = Console(width=160)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KERAS_RESNETS_CACHE"] = folder
        bundle = options.bundle or Path(folder) / "resnet50"
        if not bundle.exists():
            console.print("fitting and exporting")
            subprocess.run([sys.executable, "-c", MAKE, str(bundle)], check=True)
        command = [sys.executable, "-m", "keras_resnets.cli", "tune", str(bundle), "--max-accuracy-drop", "0.5"]
        subprocess.run([*command, "--budget", options.budget, "--out", f"{folder}/out"], check=True)
        found = tuned.known(bundle)
        assert found is not None
        searched = json.loads(Path(folder, "out", "bench.json").read_text())
        defaults = [benchmark.contender(Configuration(str(bundle), "float32", batch=batch)) for batch in (1, 8)]
        target = {"kind": "http", "bundle": str(bundle), "precision": found.settings["precision"], "model": SERVED}
        rows: list[dict[str, Any]] = []
        for number in range(ROUNDS):
            console.print(f"again, round {number + 1} of {ROUNDS}")
            result = benchmark.run(defaults, rounds=1, seconds=SECONDS)
            rates = [row["end_to_end"]["images_per_second"] for row in result["rows"]]
            with serving(bundle, found.settings) as url:
                told = run_apart({"scenario": "offline", "seconds": SECONDS, "target": {**target, "url": url}})
            if not told["valid"]:
                raise SystemExit(f"the server's answers are no good: {told['reason']}")
            served = told["figures"]["samples_per_second"]
            rows.append({"float32_batch1": rates[0], "float32_batch8": rates[1], "served": served})
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    times = medians["served"] / max(medians["float32_batch1"], medians["float32_batch8"])
    quality = next(row["quality"] for row in searched["rows"] if row.get("quality"))
    file = RESULTS / f"tune_resnet50_cpu{cores()}_ort{result['conditions']['onnxruntime']}.json"
    told = {
        "conditions": result["conditions"], "found": dict(found.settings), "evidence": dict(found.evidence),
        "quality": quality, "images_per_second": medians, "times_the_defaults": times, "rounds": rows,
        "searched": [{key: row[key] for key in ("name", "state", "reason", "end_to_end") if key in row}
                     for row in searched["rows"]],
        "served": searched["served"], "dropped": searched["dropped"],
    }  # fmt: skip
    file.write_text(json.dumps(told, indent=1) + "\n")
    console.print(f"{found}: {medians['served']:.1f} images/s, {times:.2f} times the defaults; wrote {file}")


if __name__ == "__main__":
    main()
