"""Writes what a bundle's verification found for people to read: report.md, and a picture of the error by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from keras_resnets.bundle import Manifest
from keras_resnets.extras import MissingExtraError, extra

from .gate import quality_text

REPORT, PICTURE = "report.md", "errors.png"
_COLUMNS = (
    "runtime",
    "provider",
    "precision",
    "output",
    "inputs",
    "batch",
    "max_error",
    "mean_error",
    "allowed",
    "top1_agreement",
)


def write_report(folder: Path, manifest: Manifest, errors: Mapping[str, float], allowed: float) -> None:
    """Write report.md into a bundle's folder and, where matplotlib is installed, errors.png.

    Args:
        folder: of the bundle.
        manifest: its manifest.
        errors: max|a − b| / max|a| of each layer, see `locate.errors_by_layer`.
        allowed: what the outputs were allowed.
    """
    picture = ""
    if errors:
        with suppress(MissingExtraError):  # pictures are the `study` extra's
            _draw(errors, allowed, folder / PICTURE)
            picture = f"\n![error by layer]({PICTURE})\n"
        worst = max(errors, key=errors.__getitem__)
        picture += (
            f"\nOf {len(errors)} layers compared, `{worst}` differs most: {errors[worst]:.1e} of its largest value.\n"
        )
    sections = [
        f"# {manifest.model}\n",
        *(f"- {name}: {value}" for name, value in _facts(manifest)),
        "\n## Verification against Keras\n",
        "Errors are max|a − b| and mean|a − b|, over max|a| of Keras's output. Lower precisions are held to the "
        "accuracy gate instead, on other images.\n",
        _table(manifest.verification),
        "\n## ONNX, layer by layer\n" + (picture or "\nNo layer's output is in the graph by its own.\n"),
        "## Made with\n",
        *(f"- {name} {version}" for name, version in manifest.created.items()),
    ]
    (folder / REPORT).write_text("\n".join(sections) + "\n", encoding="utf-8")


def _facts(manifest: Manifest) -> Iterable[tuple[str, str]]:
    sides = ", ".join(["batch", *("any" if side is None else str(side) for side in manifest.input_shape[1:])])
    yield "input", f"`{manifest.input_name}`, {manifest.input_type} [{sides}]"
    yield "output", f"`{manifest.output_name}` ({manifest.output_kind})"
    how = manifest.preprocessing
    yield "preprocessing", "not known: tensors only" if how is None else f"`{how}`"
    if manifest.labels:
        names = [*manifest.labels[:3], *(["…"] if len(manifest.labels) > 3 else [])]
        yield "classes", f"{len(manifest.labels)}: {', '.join(names)}"
    yield "licence of the weights", manifest.license or "not given"
    for variant in manifest.variants:
        quality = f"; {quality_text(variant.quality)}" if variant.quality else ""
        yield variant.file, f"{variant.precision}, opset {variant.opset}, for {', '.join(variant.providers)}{quality}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [" | ".join(name.replace("_", " ") for name in _COLUMNS), "|".join(["---"] * len(_COLUMNS))]
    for row in rows:
        lines.append(" | ".join(_cell(row[name]) for name in _COLUMNS))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    if value in (None, ""):
        return "–"
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _draw(errors: Mapping[str, float], allowed: float, file: Path) -> None:
    with extra("study"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    least = allowed * 1e-6  # so that exact layers show
    axis.plot([max(error, least) for error in errors.values()], marker=".", color="tab:blue")
    axis.axhline(allowed, color="tab:red", linestyle="--", label="allowed of the output")
    shown = range(0, len(errors), max(1, len(errors) // 16))
    axis.set_xticks(list(shown), [list(errors)[i] for i in shown], rotation=60, ha="right", fontsize=7)
    axis.set(yscale="log", ylabel="max|a − b| / max|a|", title="ONNX Runtime against Keras, by layer")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(file, dpi=110)
