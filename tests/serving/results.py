"""Results of a benchmark as `benchmark.run` would return them, made up: tests import none of each other's files."""

from itertools import product

SPEED = {"float32": 1.0, "float16": 1.6, "int8": 3.4}
QUALITY = {
    "float16": {"images": 1000, "agreement": 0.999, "top1": 0.842, "top1_float32": 0.843, "float_layers": []},
    "int8": {"images": 1000, "agreement": 0.981, "top1": 0.839, "top1_float32": 0.843, "float_layers": ["conv1"]},
}
CONDITIONS = {
    "system": "Linux 6.1.0, x86_64", "processor": "AMD EPYC", "cores": 2, "logical_cpus": 2, "usable_cpus": 2,
    "flags": ["avx2", "avx512f", "avx512_vnni"], "memory_gb": 15.6, "governor": None, "load_before": 0.08,
    "python": "3.11.7", "onnxruntime": "1.32.0", "distribution": "onnxruntime", "numpy": "2.4.6",
    "keras_resnets": "0.4.0", "gpu": None, "driver": None, "seconds": 2.0, "rounds": 3,
    "order": "in turn, each run in a process of its own", "busy_before": 0.02,
}  # fmt: skip


def loop(rate, batch, workers=1):
    """Figures of a closed loop of so many images/s."""
    ms = 1e3 * batch * workers / rate
    return {
        "p50_ms": ms, "p90_ms": 1.05 * ms, "p95_ms": 1.08 * ms, "p99_ms": 1.2 * ms, "mean_ms": 1.01 * ms,
        "images_per_second": rate, "calls": 100,
    }  # fmt: skip


def row(rate, precision="float32", batch=1, threads=2, model="resnet50", provider="cpu", **more):
    """A measured row."""
    figures = loop(rate, batch)
    curve = [figures["p50_ms"] * (0.95 + 0.1 * (i / 100) + 0.4 * (i / 100) ** 20) for i in range(101)]
    rounds = [{"end_to_end": loop(rate * noise, batch)} for noise in (0.99, 1, 1.02)]
    return {
        "name": f"{model}, {precision}, {provider}, batch {batch}, {threads} threads", "kind": "bundle", "model": model,
        "architecture": model, "precision": precision, "provider": provider, "batch": batch, "threads": threads,
        "workers": 1, "spin": True, "cuda_graphs": False, "options": {}, "quality": QUALITY.get(precision),
        "state": "measured", "reason": None, "end_to_end": figures, "device_bound": loop(1.04 * rate, batch),
        "quantiles_ms": curve, "open_s": 0.31, "first_run_s": 0.084, "memory_mb": 412.0, "gpu": {},
        "golden_drift": 4e-7 if precision == "float32" else 8e-3, "settings": {"threads": threads}, "rounds": rounds,
        **more,
    }  # fmt: skip


def refused(reason, **labels):
    """A row that was not measured."""
    figures = ("end_to_end", "device_bound", "quantiles_ms", "open_s", "first_run_s", "memory_mb", "gpu", "rounds",
               "golden_drift", "settings")  # fmt: skip
    made = {name: value for name, value in row(1.0, **labels).items() if name not in figures}
    return made | {"state": "refused", "reason": reason}


def result(*rows, warnings=(), **more):
    """A result of these rows."""
    return {
        "format": "keras-resnets-bench", "format_version": 1, "conditions": CONDITIONS, "warnings": list(warnings),
        "rows": list(rows), **more,
    }  # fmt: skip


def sweep(model="resnet50", providers=("cpu",), threads=(1, 2), batches=(1, 2, 4, 8, 16, 32)):
    """The rows of a sweep as they often look: larger batches and more threads are a bit faster."""
    return [
        row(
            24 * SPEED[precision] * (1.9 if cpus == 2 else 1) / 1.9 * (1 + 0.25 * (1 - 1 / batch)) * (1 + 0.1 * number),
            precision, batch, cpus, model, provider,
        )
        for (number, provider), precision, cpus, batch in product(enumerate(providers), SPEED, threads, batches)
    ]  # fmt: skip
