"""torchvision's models and torch.onnx, for benchmarks; runs in the Python that --torch-python names.

    TORCH/bin/python benchmarks/torch_models.py resnet50 [--export FILE.onnx]

Prints the versions and whether torchvision has such a model as JSON; --export writes it first.
"""

from __future__ import annotations

import argparse
import json
import runpy
from importlib.metadata import version
from pathlib import Path
from typing import Any

OPSET = 18  # as in keras_resnets.export
# It imports torchvision also where that was compiled for another PyTorch. The package itself is not installed here.
_torchvision = runpy.run_path(str(Path(__file__).parents[1] / "keras_resnets" / "peers_torch.py"))["_torchvision"]


def build(name: str) -> Any:
    """A model of torchvision with random weights, in inference mode."""
    return _torchvision().models.get_model(name, weights=None).eval()


def image(batch: int) -> Any:
    """Ones, [batch, 3, 224, 224]."""
    import torch

    return torch.ones(batch, 3, 224, 224)


def export(model: Any, file: Path, dynamo: bool) -> None:
    """Write a model with torch.onnx, with any batch size, and names as ours."""
    import torch

    # torch.export takes an axis of length 1 for one that is always 1.
    axes: dict[str, Any] = (
        {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamo else {"dynamic_axes": {"images": {0: "batch"}}}
    )
    torch.onnx.export(
        model, (image(2 if dynamo else 1),), str(file), dynamo=dynamo, opset_version=OPSET,
        input_names=["images"], output_names=["logits"], **axes,
    )  # fmt: skip


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--export", type=Path, help="write the model here, by the TorchScript exporter")
    options = parser.parse_args()
    if options.export:
        export(build(options.model), options.export, dynamo=False)
    packages = {name: version(name) for name in ("torch", "torchvision", "onnx", "onnxscript", "numpy")}
    print(json.dumps({"has": options.model in _torchvision().models.list_models(), "packages": packages}))


if __name__ == "__main__":
    main()
