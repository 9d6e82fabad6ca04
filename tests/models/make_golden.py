"""Makes golden/golden.npz and golden/golden.json: logits of independent implementations with seeded weights.

Run in an environment of its own (the test suite does not need PyTorch):

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 numpy pillow safetensors
    /tmp/golden/bin/pip install --no-deps torchvision==0.28.0 timm==1.0.31
    /tmp/golden/bin/pip install huggingface_hub pyyaml
    /tmp/golden/bin/python tests/models/make_golden.py [NAME ...]

Names redo those networks alone. The weights are not stored: `seeded_tensor` gives them for a key of the state dict.

golden.npz holds, per network, the float32 logits of `seeded_images(2, side, side, 3)`: every 8th class of 1000, or
all of 10. golden.json holds, per network:

    source                    the implementation and its version
    side                      of the images that the logits are of
    digest                    SHA-256 of the sorted lines "key shape" of the state dict that is loaded, as in
                              "fc.weight 1000x512\\n", without the counters num_batches_tracked
    digest_timm               the same for timm's network, where it has the one that torchvision gave the logits of
    parameters                trainable ones
    multiply_adds             of one image of multiply_adds_side; convolutions, linear layers and attention
    published_parameters      torchvision's own figures, where it has the network;
    published_multiply_adds   in units of 10⁹, with the digits that it publishes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
sys.path.insert(0, str(HERE))
# torchvision from PyPI is built for CUDA; beside a CPU build of PyTorch its compiled operators do not
# load, and importing it fails unless those that it looks for are declared. None is used here.
for operator in ("nms", "qnms"):
    torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")

import timm  # noqa: E402
import torchvision  # noqa: E402
from seeded import seeded_images  # noqa: E402
from seeded_torch import seeded_tensor  # noqa: E402
from timm.models.vision_transformer import checkpoint_filter_fn  # noqa: E402
from torchvision import models as zoo  # noqa: E402

TIMM, TORCHVISION = f"timm {timm.__version__}", f"torchvision {torchvision.__version__.split('+')[0]}"


class WideBasic(nn.Module):
    """Pre-activation block of two 3×3 convolutions; a projection starts from the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = torch.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(torch.relu(self.bn2(self.conv1(active))))


class WideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016 for images of 32×32; modules named as in xternalz/WideResNet-pytorch."""

    def __init__(self, depth: int, width: int, classes: int = 10) -> None:
        super().__init__()
        channels = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for number in (1, 2, 3):
            before, after = channels[number - 1 : number + 1]
            layer = [WideBasic(before, after, 1 if number == 1 else 2)]
            layer += [WideBasic(after, after, 1) for _ in range((depth - 4) // 6 - 1)]
            self.add_module(f"block{number}", nn.ModuleDict({"layer": nn.Sequential(*layer)}))
        self.bn1 = nn.BatchNorm2d(channels[-1])
        self.fc = nn.Linear(channels[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        for block in (self.block1, self.block2, self.block3):
            x = block["layer"](x)
        return self.fc(torch.relu(self.bn1(x)).mean((2, 3)))


def cifar_densenet() -> nn.Module:
    """DenseNet-BC of depth 100 and growth 12, from torchvision's blocks."""
    model = zoo.DenseNet(12, (16, 16, 16), 24, num_classes=10)
    model.features.conv0 = nn.Conv2d(3, 24, 3, 1, 1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        setattr(model.features, name, nn.Identity())
    return model


@dataclass(frozen=True)
class Network:
    """An independent implementation, and the images that it is run on."""

    source: str
    build: Callable[[], nn.Module]
    side: int = 80  # 40, 20, 10, 5, 3: an odd side to halve too
    multiply_adds_side: int = 224
    torchvision: str | None = None  # whose published figures hold
    timm: str | None = None  # whose state dict is wanted too
    weights: Callable[[], nn.Module] | None = None  # has the state dict to load, where not the network itself


def from_torchvision(name: str, timm_too: bool = False, **options: int) -> Network:
    source = f"{TORCHVISION}: {name}"
    twin = name if timm_too else None
    return Network(source, lambda: zoo.get_model(name), torchvision=name, timm=twin, **options)


def from_timm(name: str, torchvision_too: str | None = None, **options: int) -> Network:
    return Network(f"{TIMM}: {name}", lambda: timm.create_model(name), torchvision=torchvision_too, **options)


def wide(depth: int, width: int) -> Network:
    source = f"make_golden.py: WideResNet({depth}, {width}), keys of xternalz/WideResNet-pytorch"
    return Network(source, lambda: WideResNet(depth, width), side=32, multiply_adds_side=32)


DEPTHS = (18, 34, 50, 101, 152)


def of_torchvision() -> Iterator[tuple[str, Network]]:
    for name in (*(f"resnet{depth}" for depth in DEPTHS), "resnext50_32x4d", "resnext101_32x8d"):
        yield name, from_torchvision(name)
    for depth in (50, 101):
        yield f"wideresnet{depth}_2", from_torchvision(f"wide_resnet{depth}_2")
    for norm in ("", "_bn"):
        for depth in (11, 13, 16, 19):  # the first linear layer wants 7×7
            yield f"vgg{depth}{norm}", from_torchvision(f"vgg{depth}{norm}", timm_too=True, side=224)
    for depth in (121, 169, 201):
        yield f"densenet{depth}", from_torchvision(f"densenet{depth}", timm_too=True)
    blocks = (6, 12, 64, 48)
    yield "densenet264", Network(f"{TORCHVISION}: DenseNet(32, {blocks})", lambda: zoo.DenseNet(32, blocks, 64))
    source = f"{TORCHVISION}: DenseNet(12, (16, 16, 16), 24) with a stem of one 3×3 convolution"
    yield "densenetbc100_12", Network(source, cifar_densenet, side=32, multiply_adds_side=32)


def of_timm() -> Iterator[tuple[str, Network]]:
    for depth in DEPTHS:
        yield f"seresnet{depth}", from_timm(f"seresnet{depth}")
    for name in ("resnet50c", "resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d"):
        yield name, from_timm(name)
    for depth in (50, 101, 152, 200):
        yield f"resnetrs{depth}", from_timm(f"resnetrs{depth}")
    for depth in DEPTHS:
        yield f"resnet{depth}v2", from_timm(f"resnetv2_{depth}")
    for size, full in (("ti", "tiny"), ("s", "small"), ("b", "base")):
        twin = "vit_b_16" if size == "b" else None
        yield f"vit_{size}16", from_timm(f"vit_{full}_patch16_224", twin, side=224)
    name = "vit_tiny_patch16_224"
    resampled = Network(
        f"{TIMM}: {name}, img_size=160, position embedding of 224 resampled by checkpoint_filter_fn",
        lambda: timm.create_model(name, img_size=160),
        side=160,
        multiply_adds_side=160,
        weights=lambda: timm.create_model(name),
    )
    yield "vit_ti16@160", resampled


def networks() -> Iterator[tuple[str, Network]]:
    """Our name and the implementation that ours is held against."""
    yield from of_torchvision()
    yield from of_timm()
    for depth, width in ((16, 8), (28, 10), (40, 4)):
        yield f"wrn{depth}_{width}", wide(depth, width)


def meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose variables have shapes alone."""
    with torch.device("meta"):
        return build().eval()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    state = model.state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}


def digest(model: nn.Module) -> str:
    lines = sorted(f"{key} {'x'.join(map(str, shape))}\n" for key, shape in shapes(model).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def multiply_adds(model: nn.Module, side: int) -> int:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2


def describe(network: Network, model: nn.Module, owner: nn.Module) -> dict[str, str | int | float]:
    """What golden.json says of a network; `owner` has the state dict that is loaded."""
    entry: dict[str, str | int | float] = {
        "source": network.source,
        "side": network.side,
        "digest": digest(owner),
        "parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "multiply_adds": multiply_adds(model, network.multiply_adds_side),
        "multiply_adds_side": network.multiply_adds_side,
    }
    if name := network.timm:
        entry["digest_timm"] = digest(meta(lambda: timm.create_model(name)))
    if network.torchvision:
        published = next(iter(zoo.get_model_weights(network.torchvision))).meta
        entry["published_parameters"] = published["num_params"]
        entry["published_multiply_adds"] = published["_ops"]
    return entry


def fill(model: nn.Module, owner: nn.Module) -> None:
    """Give a network without values those of the seeded state dict of `owner`, every one of them."""
    state = {key: torch.from_numpy(seeded_tensor(key, shape)) for key, shape in shapes(owner).items()}
    if owner is not model:
        state = checkpoint_filter_fn(state, model)
    for key in model.state_dict():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
    model.load_state_dict(state, assign=True)


def weakest(model: nn.Module, logits: torch.Tensor) -> tuple[float, str]:
    """The parameters that count least, and how far relative changes of size 1 move the logits, in their deviation."""
    direction = torch.from_numpy(np.random.RandomState(0).standard_normal(logits.shape)).float()
    (logits * direction).sum().div(direction.norm() * logits.detach().std()).backward()
    return min((float((value.grad * value.detach()).norm()), key) for key, value in model.named_parameters())


def run(name: str, entry: dict[str, str | int | float], side: int, model: nn.Module) -> np.ndarray:
    """Logits, with a line on whether they are sane: finite, told apart by the images, moved by every parameter."""
    images = torch.from_numpy(seeded_images(2, side, side, 3).transpose(0, 3, 1, 2).copy())
    scores = model(images)
    least, key = weakest(model, scores)
    logits = scores.detach().numpy()
    scale, change = float(np.abs(logits).max()), float(np.std(logits[0] - logits[1]) / np.std(logits))
    problems = []
    if not np.isfinite(logits).all() or not 0.01 < scale < 1e4:
        problems.append("scale")
    if change < 0.002 or least < 5e-4:
        problems.append(f"hardly sensitive: {key}")
    if entry.get("published_parameters", entry["parameters"]) != entry["parameters"]:
        problems.append(f"published parameters {entry['published_parameters']:,}")
    counted = entry["multiply_adds"] / 1e9
    if abs(entry.get("published_multiply_adds", counted) - counted) > 0.00051:
        problems.append(f"published multiply-adds {entry['published_multiply_adds']} G")
    figures = f"{entry['parameters']:>11,} parameters  {counted:7.4f} G  max {scale:7.3g}  change {change:5.3f}"
    print(f"{name:17}{figures}  weakest {least:.1e}", "; ".join(problems), flush=True)
    return logits[:, ::8] if logits.shape[1] > 125 else logits


def main() -> None:
    """Write the logits and descriptions of all networks, or renew those of the named ones."""
    known = dict(networks())
    parser = argparse.ArgumentParser(description="Makes the golden logits of independent implementations.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks to redo (default: all)")
    names = parser.parse_args().names or list(known)
    if unknown := set(names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")

    timm.layers.set_fused_attn(False)  # so that the products are counted
    arrays_file, facts_file = GOLDEN / "golden.npz", GOLDEN / "golden.json"
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, dict[str, str | int | float]] = {}
    if arrays_file.exists() and facts_file.exists():
        with np.load(arrays_file) as stored:
            arrays = dict(stored)
        facts = json.loads(facts_file.read_text(encoding="utf-8"))

    start = time.perf_counter()
    for name in names:
        network = known[name]
        model = meta(network.build)
        owner = meta(network.weights) if network.weights else model
        facts[name] = describe(network, model, owner)
        fill(model, owner)
        arrays[name] = run(name, facts[name], network.side, model)
    order = [name for name in known if name in facts]
    np.savez_compressed(arrays_file, **{name: arrays[name] for name in order})
    facts_file.write_text(json.dumps({name: facts[name] for name in order}, indent=1) + "\n", encoding="utf-8")
    size = arrays_file.stat().st_size
    print(f"{len(names)} networks in {time.perf_counter() - start:.0f} s; {len(order)} in {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
