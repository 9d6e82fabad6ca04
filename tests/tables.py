"""Writes the generated tables of the pages anew: python tests/tables.py. A test compares them."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from keras_resnets.bundle import Bundle
from keras_resnets.models import model_info
from keras_resnets.models.tables import markdown, page_tables
from keras_resnets.sample import BUNDLE, TOP1
from keras_resnets.study import Outcome
from keras_resnets.study.of_degradation import spread
from keras_resnets.training.config import read_recipe
from keras_resnets.weights import find_weights, list_weights
from keras_resnets.weights.ledger import LEDGER

ROOT = Path(__file__).parent.parent
PAGES = {  # which tables stand on which page
    "README.md": ("constructors",),
    "README.zh-CN.md": ("constructors",),
    "docs/models.md": ("models",),
    "docs/weights.md": ("weights",),
    "docs/results.md": ("fashion_mnist", "degradation", "gpu_degradation", "imagenet"),
    "docs/studies.md": (
        "degradation_findings",
        "gpu_degradation_findings",
        "identity_findings",
        "lesion_findings",
        "landscape_findings",
        "depth_findings",
    ),
}
STUDIES = ROOT / "docs" / "studies"

# Test accuracies in percent that the README of the data set lists (github.com/zalandoresearch/fashion-mnist).
FASHION_MNIST = {
    "VGG16, 26M parameters": 93.5,
    "ResNet18": 94.9,
    "DenseNet-BC, 768K parameters": 95.4,
    "WRN-28-10": 95.9,
    "WRN-40-4": 96.7,
}
# He et al. 2015. CIFAR-10: Table 6, test error in percent. ImageNet: top-1 / top-5 errors of Tables 3 (ten crops) and 4
# (one model, several scales); ResNet-34 has shortcuts A in Table 3, B in Table 4.
CIFAR10 = {"resnet20": "8.75", "resnet32": "7.51", "resnet44": "7.17", "resnet56": "6.97", "resnet110": "6.43"}
IMAGENET = {
    "vgg16": ("28.07 / 9.33", "–"),
    "plainnet34": ("28.54 / 10.02", "–"),
    "resnet34": ("25.03 / 7.76", "21.84 / 5.71"),
    "resnet50": ("22.85 / 6.71", "20.74 / 5.25"),
    "resnet101": ("21.75 / 6.05", "19.87 / 4.60"),
    "resnet152": ("21.43 / 5.71", "19.38 / 4.49"),
}


@cache
def tables() -> dict[str, str]:
    """All generated tables by the name of their marker."""
    return {
        **page_tables(),
        "fashion_mnist": fashion_mnist(),
        "degradation": degradation(STUDIES),
        "gpu_degradation": degradation(STUDIES / "gpu"),
        "imagenet": imagenet(),
        **{f"{file.stem}_findings": findings(file) for file in STUDIES.glob("*.json")},
        "gpu_degradation_findings": findings(STUDIES / "gpu" / "degradation.json"),
    }


def fashion_mnist() -> str:
    """Accuracies on the 10,000 test images: of the committed runs, and as published for others."""
    pages = {ROOT / record.page: record for record in LEDGER if record.source == "package"}
    groups: dict[tuple[str, str], list[Path]] = {}  # runs that differ in nothing but the seed
    for file in sorted((ROOT / "benchmarks" / "results").glob("**/train_*/**/evaluation.json")):
        recipe = read_recipe(file.parent)
        if recipe.data == "fashion_mnist":
            how = f"{'GPU' if file.parent.parent.name == 'train_jax' else 'CPU'}, {recipe.precision}"
            groups.setdefault((recipe.model, how), []).append(file.parent)
    rows = []
    for (name, how), logs in sorted(groups.items(), key=lambda group: (model_info(group[0][0]).constructor, group[0])):
        found = [100 * json.loads((log / "evaluation.json").read_text())["test"]["accuracy"] for log in logs]
        own = [f"{pages[log].results[0].top1:.2f}" for log in logs if log in pages]
        assert not own or own == [f"{found[0]:.2f}"]
        seeds = ", ".join(f"[{read_recipe(log).seed}](../{log.relative_to(ROOT).as_posix()})" for log in logs)
        info, runs = model_info(name), f"{how}, {read_recipe(logs[0]).epochs} epochs, seeds {seeds}"
        rows.append((f"`{info.constructor}`", f"{info.parameters:,}", *(own or [""]), spread(found), "–", runs))
    small = model_info(Bundle.open(BUNDLE).manifest.model).constructor
    rows.append((f"`{small}` in int8", "", f"{TOP1['int8']:.2f}", "", "–", "of `keras-resnets sample`"))
    rows += [(name, "", "", "–", f"{top1}", "") for name, top1 in FASHION_MNIST.items()]
    columns = (
        "network", "parameters", "in the package (%)", "measured here (%): median (range)", "published (%)", "runs",
    )  # fmt: skip
    return markdown(columns, rows, right=(1, 2, 3, 4))


def degradation(folder: Path) -> str:
    """A committed study beside the errors that the paper gives for CIFAR-10."""
    columns = (
        "network", "parameters", "seeds", "training error (%): median (range)", "test error (%): median (range)",
        "published, CIFAR-10: test error (%)",
    )  # fmt: skip
    found = Outcome.load(folder / "degradation.json").rows
    rows = [
        (
            f"`{model_info(row['network']).constructor}`", f"{row['parameters']:,}", str(row["seeds"]),
            row["training error (%)"], row["test error (%)"], CIFAR10.get(row["network"], "–"),
        )
        for row in sorted(found, key=lambda row: (row["family"], row["layers"]))
    ]  # fmt: skip
    return markdown(columns, rows, right=(1, 2, 3, 4, 5))


def findings(file: Path) -> str:
    """What a committed study found, a line each."""
    return "".join(f"- {finding}\n" for finding in Outcome.load(file).findings)


def imagenet() -> str:
    """Errors that He et al. published, beside those of the ledger's first weights at 224 pixels, one central crop."""
    columns = ("network", "published: 10 crops", "published: several scales", "published weights: 1 crop", "which")
    rows = []
    for name, (crops, scales) in IMAGENET.items():
        known = [record for record in list_weights(name) if record.top1_at(224) is not None]
        oldest = next((record for record in known if record.tag == "tv_in1k"), None)
        for record in dict.fromkeys(filter(None, (oldest, find_weights(name) if known else None))):
            figure = f"{100 - record.top1_at(224):.2f}"
            rows.append((f"`{model_info(name).constructor}`", crops, scales, figure, f"`{record.name}`"))
        if not known:
            rows.append((f"`{model_info(name).constructor}`", crops, scales, "–", "–"))
    return markdown(columns, rows, right=(1, 2, 3))


def renewed(page: str) -> str:
    """A page's text with each of its tables between the markers replaced."""
    text, made = (ROOT / page).read_text(encoding="utf-8"), tables()
    for name in PAGES[page]:
        begin, end, table = f"<!-- {name}: make tables -->\n", f"<!-- end of {name} -->", made[name]
        text, count = re.subn(
            f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", lambda _, table=table: f"\n{table}\n", text, flags=re.S
        )
        assert count == 1, f"{page} has no place for the table of {name}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(renewed(page), encoding="utf-8")
