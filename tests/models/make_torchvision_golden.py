"""Makes golden/torchvision.npz: logits of torchvision's ResNets with seeded weights.

Run in an environment of its own (the test suite does not need PyTorch):

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 numpy pillow
    /tmp/golden/bin/pip install --no-deps torchvision==0.28.0
    /tmp/golden/bin/python tests/models/make_torchvision_golden.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
# torchvision from PyPI is built for CUDA; beside a CPU build of PyTorch its compiled operators do not
# load, and importing it fails unless those that it looks for are declared. None is used here.
for operator in ("nms", "qnms"):
    torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")

import torchvision.models as zoo  # noqa: E402
from seeded import seeded, seeded_images  # noqa: E402

ROLES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def keras_name(name: str) -> str | None:
    """Our "layer/role" for an entry of torchvision's state dict."""
    if name.startswith("fc."):
        return "predictions/" + {"weight": "kernel", "bias": "bias"}[name[3:]]
    module, role = name.rsplit(".", 1)
    if role == "num_batches_tracked":
        return None
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))", module):
        stage, block, kind, number, shortcut = match.groups()
        kind = kind or ("conv", "bn")[int(shortcut)]
        layer = f"conv{int(stage) + 1}_block{int(block) + 1}_{number or 0}_{kind}"
    else:
        layer = {"conv1": "conv1_conv", "bn1": "conv1_bn"}[module]
    return f"{layer}/" + ("kernel" if layer.endswith("_conv") else ROLES[role])


def values(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Seeded values in PyTorch's layout."""
    shape = tuple(tensor.shape)
    if tensor.ndim == 4:
        return torch.from_numpy(seeded(name, (shape[2], shape[3], shape[1], shape[0])).transpose(3, 2, 0, 1).copy())
    if tensor.ndim == 2:
        return torch.from_numpy(seeded(name, shape[::-1]).T.copy())
    return torch.from_numpy(seeded(name, shape))


def main() -> None:
    """Write the logits [2, 1000] of each network on 2 images of 96×96."""
    images = torch.from_numpy(seeded_images(2, 96, 96, 3).transpose(0, 3, 1, 2).copy())
    golden = {}
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        model = getattr(zoo, name)().eval()
        state = model.state_dict()
        for entry, tensor in state.items():
            if our := keras_name(entry):
                tensor.copy_(values(our, tensor))
        with torch.inference_mode():
            golden[name] = model(images).numpy()
        print(name, float(np.abs(golden[name]).max()))
    np.savez_compressed(HERE / "golden" / "torchvision.npz", **golden)


if __name__ == "__main__":
    main()
