"""ResNet-50 on an NVIDIA GPU: what benchmarks/gpu.sh runs once its surroundings are set up.

    python benchmarks/gpu.py --make BUNDLE     a bundle to measure; needs the extra `export`
    benchmarks/gpu.sh BUNDLE                   measures

The bundle's weights are random and take few values, so that it packs well (33 MB instead of 170) on its way to a
machine without a network; times do not depend on what the values are.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from keras_resnets.machine import usable_cpus

RESULTS = Path(__file__).parent / "results"
SIDE = 224


def make(folder: Path) -> None:
    """Write the bundle."""
    import keras
    import numpy as np

    import keras_resnets
    from keras_resnets.export import Gate, to_bundle

    keras.utils.set_random_seed(0)
    model = keras_resnets.ResNet50(variant="v1.5", classifier_activation=None)
    for weight in model.weights:
        values = weight.numpy()
        if values.ndim > 1:
            step = np.float32(2.0 ** np.round(np.log2(0.7 * values.std())))
            weight.assign(step * np.clip(np.round(values / step), -3, 3))
    noise = np.random.default_rng(0).normal(size=(8, SIDE, SIDE, 3)).astype(np.float32)
    keras_resnets.update_batch_norm(model, [noise])
    to_bundle(model, folder, saved_model=False, precisions=["float16", "int8-symmetric"], gate=Gate(0.0, 1.0))


def contenders(bundle: Path, providers: Sequence[str], batches: Sequence[int]) -> list[Any]:
    """Who takes part, the same ones on every machine."""
    from keras_resnets.serving.benchmark import sweep

    most, chosen = [max(batches)], []
    for provider in providers:
        on_gpu = provider != "cpu"

        def add(
            precision: str, batches: Sequence[int], graphs: Sequence[bool], provider: str = provider, **options: str
        ) -> None:
            chosen.extend(sweep(
                [bundle], providers=[provider], precisions=[precision], batches=batches, cuda_graphs=graphs,
                options=options,
            ))  # fmt: skip

        add("float16", batches, (False, True) if on_gpu else (False,))
        add("float32", batches, (on_gpu,))
        add("int8-symmetric", most, (False,))  # the CUDA provider leaves part of it to the CPU, or refuses
        if provider == "cuda":
            add("float32", most, (True,), use_tf32="1")
            add("float16", most, (True,), prefer_nhwc="0")
    if importlib.util.find_spec("torch"):
        chosen += torch_contenders(batches, providers != ["cpu"])
    return chosen


def torch_contenders(batches: Sequence[int], on_gpu: bool) -> list[Any]:
    """torchvision's ResNet-50 in this Python's torch: on a GPU, torch.compile in float16, channels last."""
    from keras_resnets.peers import peer_contenders

    provider = "cuda" if on_gpu else "cpu"
    found = peer_contenders(
        ["torch:resnet50"], batches=batches, folder=".", python=sys.executable, providers=[provider]
    )
    # Eager PyTorch launches each operator by itself, which nobody does who wants speed.
    return [one for one in found if one.labels["options"] or not on_gpu]


def served(bundle: Path, provider: str) -> dict[str, Any]:
    """Ask the server, with CUDA graphs where there are any, and compare its answers with the golden ones.

    Raises:
        BundleError: when they differ.
    """
    import numpy as np

    from keras_resnets.serving import Engine
    from keras_resnets.serving.client import Client
    from keras_resnets.serving.providers import ON_GPU
    from keras_resnets.serving.tune import SERVED, serving

    settings = {
        "provider": provider, "precision": "float16", "workers": 1, "threads": usable_cpus(), "max_batch": 8,
        "queue_delay": 0.0, "cuda_graphs": provider in ON_GPU,
    }  # fmt: skip
    engine = Engine(bundle, provider=provider, precision="float16")
    golden, manifest, worst = engine.golden, engine.bundle.manifest, 0.0
    with serving(bundle, settings) as url:
        client = Client(url)
        for number in (1, 2, 3, 5, 8, 1, 3):
            rows = golden.rows(0, number)
            feeds = {manifest.input_name: np.ascontiguousarray(golden.tensor[rows])}
            worst = max(worst, golden.drift(client.infer(SERVED, feeds)[manifest.output_name], rows))
    return {"provider": provider, "cuda_graphs": settings["cuda_graphs"], "golden_drift": worst}


def active(asked: str) -> list[str]:
    """The providers to measure."""
    from keras_resnets.serving.providers import active_providers

    if asked != "auto":
        return asked.split(",")
    state = active_providers()
    if state.get("cuda") != "active":
        raise SystemExit(f"the CUDA provider is {state.get('cuda', 'not in this onnxruntime')}")
    return [name for name in ("cuda", "tensorrt") if state.get(name) == "active"]


def main() -> None:
    """Parse the options; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--make", action="store_true", help="write the bundle, and measure nothing")
    parser.add_argument("--providers", default="auto")
    parser.add_argument("--batches", default="1,32,128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.make:
        make(options.bundle)
        return
    from keras_resnets.serving import benchmark, report
    from keras_resnets.serving.conditions import conditions

    providers = active(options.providers)
    console = Console(width=200)
    batches = [int(batch) for batch in options.batches.split(",")]
    known = conditions()
    device = known["gpu"] or f"{known['usable_cpus']} cpus"
    name = re.sub("[^a-z0-9.]+", "_", f"gpu resnet50 {device} ort{known['onnxruntime']}".lower().replace("nvidia ", ""))
    file = options.out / f"{name}.json"
    result = benchmark.run(
        contenders(options.bundle, providers, batches), rounds=options.rounds, seconds=options.seconds,
        say=lambda name, done, all_: console.print(f"{done + 1} of {all_}: {name}", highlight=False),
        keep=lambda result: benchmark.save(result, file),
    )  # fmt: skip
    report.print_table(result, console)
    report.write_html(result, file.with_suffix(".html"))
    result["served"] = [served(options.bundle, provider) for provider in providers]
    console.print(json.dumps(result["served"]), highlight=False)
    benchmark.save(result, file)
    console.print(f"wrote {file} and .html", highlight=False)


if __name__ == "__main__":
    main()
