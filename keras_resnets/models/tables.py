"""The models and their weights as rows of text, for the terminal and for the pages of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from keras_resnets.models import list_models, model_info
from keras_resnets.weights import Weights, list_weights

MODEL_COLUMNS = ("name", "constructor", "parameters", "FLOPs", "input", "best weights: top-1, licence", "paper")
CONSTRUCTOR_COLUMNS = ("constructor", "parameters", "FLOPs", "best weights: top-1")
WEIGHTS_COLUMNS = ("weights", "top-1 / top-5 % at pixels (crop)", "licence", "hash", "recipe")


def model_rows(names: Iterable[str]) -> list[Sequence[str]]:
    """One row of MODEL_COLUMNS a model."""
    rows: list[Sequence[str]] = []
    for info in map(model_info, names):
        records = list_weights(info.name)
        rows.append(
            (
                info.name,
                info.constructor,
                f"{info.parameters:,}",
                f"{info.multiply_adds / 1e9:.3f} G",
                "×".join(map(str, info.input_shape)),
                _best(records),
                info.paper,
            )
        )
    return rows


def weights_rows(pattern: str = "*") -> list[Sequence[str]]:
    """One row of WEIGHTS_COLUMNS a record of the ledger, in the order of the models."""
    return [
        (record.name, results(record), record.license, _hash(record), record.recipe)
        for model in list_models(pattern)
        for record in list_weights(model)
    ]


def results(record: Weights) -> str:
    """Published accuracies, each with its resolution and crop."""
    return "; ".join(
        f"{result.top1:.2f} / {f'{result.top5:.2f}' if result.top5 else '–'} at {result.resolution} "
        f"({f'{result.crop:g}' if result.crop else '–'})"
        for result in record.results
    )


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A Markdown table; `right` are the columns of numbers."""
    rule = ["---:" if i in set(right) else "---" for i in range(len(columns))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows)) + "\n"


def page_tables() -> dict[str, str]:
    """The generated tables by the name of their marker: of constructors (short), of models and of weights."""
    rows = model_rows(list_models())
    models = [(f"`{constructor}`", *rest) for _, constructor, *rest in rows]
    weights = [(f"`{name}`", *rest) for name, *rest in weights_rows()]
    short = [(f"`{row[1]}`", *row[2:4], _top1(list_weights(row[0]))) for row in rows]
    return {
        "constructors": markdown(CONSTRUCTOR_COLUMNS, short, right=(1, 2)),
        "models": markdown(MODEL_COLUMNS[1:], models, right=(1, 2)),
        "weights": markdown(WEIGHTS_COLUMNS, weights),
    }


def _hash(record: Weights) -> str:
    return record.hash.partition(":")[0] if record.hash else "the hub's"


def _top1(records: Sequence[Weights]) -> str:
    """Of the best: "tv2_in1k: 80.85"."""
    if not records:
        return "–"
    best = records[0]
    top = best.results[0] if best.top1_at(224) is None else None
    return f"{best.tag}: " + (f"{top.top1:.2f} at {top.resolution}" if top else f"{best.top1_at(224):.2f}")


def _best(records: Sequence[Weights]) -> str:
    if not records:
        return "–"
    more = f"; {len(records) - 1} more" if len(records) > 1 else ""
    return f"{_top1(records)}, {records[0].license}{more}"
