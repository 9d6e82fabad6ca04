"""What timm and torchvision call the layers of these networks. Strings alone: no framework is loaded.

A dialect is "timm" or "torchvision"; they differ in the heads of VGG and in Vision Transformers. CIFAR networks that
neither has are named by the same rules; wide ones as xternalz/WideResNet-pytorch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from keras_resnets.models import model_info

DIALECTS = ("timm", "torchvision")
# The variant of each family's builder that PyTorch's networks are.
VARIANTS = {"resnet_v2": "paper", "densenet": "paper", "vgg": None, "vit": None}
HEAD = ("fc1", "fc2", "predictions")  # what include_top=False leaves away

# Where timm has 1×1 convolutions for dense layers, by family.
_DENSE_AS_CONVOLUTIONS = {"resnet_v2": ("head.fc",), "vgg": ("pre_logits.fc2",)}

_TWO_CONVOLUTIONS = re.compile(r"(se)?resnet(18|34)d?|plainnet(18|34)|(res|plain)net(20|32|44|56|110|1202)")
_Rules = tuple[tuple[str, "str | Callable[[re.Match[str]], str]"], ...]


def torch_variant(model: str) -> str | None:
    """The variant of a model that PyTorch's weights belong to; None where it has no variants."""
    info = model_info(model)
    if "variant" not in dict(info.options):
        return None
    return VARIANTS.get(_family(model), "v1.5")


def has_one_variant(model: str) -> bool:
    """Whether a model's variants, but for constants and biases, are one: where the stride has one place to be."""
    return "variant" not in dict(model_info(model).options) or (
        _family(model) not in ("resnet_v2", "densenet") and _TWO_CONVOLUTIONS.fullmatch(model) is not None
    )


def same_variant(model: str, one: str, other: str) -> bool:
    """Whether two variants of a model compute the same: "v1.5" and "paper" do in blocks of two convolutions."""
    return one == other or (has_one_variant(model) and {one, other} == {"v1.5", "paper"})


def torch_modules(model: str, layers: Sequence[str], dialect: str) -> dict[str, str]:
    """The PyTorch module of each layer that has weights.

    Args:
        model: a name of the registry.
        layers: names of the network's layers, in order.
        dialect: "timm" or "torchvision".
    """
    family = _family(model)
    if family == "vgg":
        return _vgg(layers, dialect)
    rules = _rules(model, family, dialect)
    found = {}
    for layer in layers:
        for pattern, module in rules:
            if match := re.fullmatch(pattern, layer):
                found[layer] = module if isinstance(module, str) else module(match)
                break
    return found


def dense_as_convolutions(model: str) -> tuple[str, ...]:
    """The modules of a model that are 1×1 convolutions, where Keras has dense layers."""
    return _DENSE_AS_CONVOLUTIONS.get(_family(model), ())


def _family(model: str) -> str:
    return model_info(model).module.rsplit(".", 1)[1]


def _rules(model: str, family: str, dialect: str) -> _Rules:
    if family == "vit":
        return _VIT if dialect == "timm" else _VIT_TORCHVISION
    if family == "densenet":
        return _DENSENET
    if family == "resnet_v2":
        return _RESNET_V2
    if model.startswith("wrn"):
        return _WRN
    pooled_shortcut = family == "resnet_rs" or (family == "resnet_d" and model != "resnet50c")
    return (*_RESNET_POOLED_SHORTCUT, *_RESNET) if pooled_shortcut else _RESNET


def _block(template: str, **offsets: int) -> Callable[[re.Match[str]], str]:
    """Fill {stage}, {block} (counted from our conv2 and 1) and the rest of a match into a template."""

    def fill(match: re.Match[str]) -> str:
        parts: dict[str, str | int] = dict(match.groupdict())
        for key, offset in {"stage": 1, "block": 1, **offsets}.items():
            if key in parts:
                parts[key] = int(parts[key]) - offset
        return template.format(**parts)

    return fill


_AT = r"conv(?P<stage>\d)_block(?P<block>\d+)"

_RESNET: _Rules = (
    ("conv1_conv", "conv1"),
    ("conv1_bn", "bn1"),
    # deep stems: a sequence of convolution, norm, activation, and the last norm on its own
    ("conv1_1_conv", "conv1.0"),
    ("conv1_1_bn", "conv1.1"),
    ("conv1_2_conv", "conv1.3"),
    ("conv1_2_bn", "conv1.4"),
    ("conv1_3_conv", "conv1.6"),
    ("conv1_3_bn", "bn1"),
    ("conv1_4_conv", "maxpool.0"),
    ("conv1_4_bn", "maxpool.1"),
    (_AT + "_0_conv", _block("layer{stage}.{block}.downsample.0")),
    (_AT + "_0_bn", _block("layer{stage}.{block}.downsample.1")),
    (_AT + r"_(?P<number>\d)_(?P<kind>conv|bn)", _block("layer{stage}.{block}.{kind}{number}")),
    (_AT + "_se_reduce", _block("layer{stage}.{block}.se.fc1")),
    (_AT + "_se_expand", _block("layer{stage}.{block}.se.fc2")),
    ("predictions", "fc"),
)
_RESNET_POOLED_SHORTCUT: _Rules = (
    (_AT + "_0_conv", _block("layer{stage}.{block}.downsample.1")),
    (_AT + "_0_bn", _block("layer{stage}.{block}.downsample.2")),
)
_RESNET_V2: _Rules = (
    ("conv1_conv", "stem.conv"),
    (_AT + "_preact_bn", _block("stages.{stage}.blocks.{block}.norm1", stage=2)),
    (_AT + "_0_conv", _block("stages.{stage}.blocks.{block}.downsample.conv", stage=2)),
    (_AT + r"_(?P<number>\d)_conv", _block("stages.{stage}.blocks.{block}.conv{number}", stage=2)),
    (_AT + r"_(?P<number>\d)_bn", _block("stages.{stage}.blocks.{block}.norm{number}", stage=2, number=-1)),
    ("post_bn", "norm"),
    ("predictions", "head.fc"),
)
_WRN: _Rules = (
    ("conv1_conv", "conv1"),
    (_AT + "_preact_bn", _block("block{stage}.layer.{block}.bn1")),
    (_AT + "_0_conv", _block("block{stage}.layer.{block}.convShortcut")),
    (_AT + r"_(?P<number>\d)_conv", _block("block{stage}.layer.{block}.conv{number}")),
    (_AT + r"_(?P<number>\d)_bn", _block("block{stage}.layer.{block}.bn{number}", number=-1)),
    ("post_bn", "bn1"),
    ("predictions", "fc"),
)
_DENSENET: _Rules = (
    ("conv1_conv", "features.conv0"),
    ("conv1_bn", "features.norm0"),
    (
        _AT + r"_(?P<number>[01])_bn",
        _block("features.denseblock{stage}.denselayer{block}.norm{number}", block=0, number=-1),
    ),
    (_AT + r"_(?P<number>[12])_conv", _block("features.denseblock{stage}.denselayer{block}.conv{number}", block=0)),
    (r"pool(?P<stage>\d)_bn", _block("features.transition{stage}.norm")),
    (r"pool(?P<stage>\d)_conv", _block("features.transition{stage}.conv")),
    ("bn", "features.norm5"),
    ("predictions", "classifier"),
)
_VIT: _Rules = (
    ("patch_embed", "patch_embed.proj"),
    ("tokens", ""),
    (r"block(?P<block>\d+)_norm(?P<number>[12])", _block("blocks.{block}.norm{number}")),
    (r"block(?P<block>\d+)_attention", _block("blocks.{block}.attn")),
    (r"block(?P<block>\d+)_mlp(?P<number>[12])", _block("blocks.{block}.mlp.fc{number}")),
    ("norm", "norm"),
    ("predictions", "head"),
)
_VIT_TORCHVISION: _Rules = (
    ("patch_embed", "conv_proj"),
    ("tokens", ""),
    (
        r"block(?P<block>\d+)_norm(?P<number>[12])",
        _block("encoder.layers.encoder_layer_{block}.ln_{number}"),
    ),
    (r"block(?P<block>\d+)_attention", _block("encoder.layers.encoder_layer_{block}.self_attention")),
    (r"block(?P<block>\d+)_mlp1", _block("encoder.layers.encoder_layer_{block}.mlp.0")),
    (r"block(?P<block>\d+)_mlp2", _block("encoder.layers.encoder_layer_{block}.mlp.3")),
    ("norm", "encoder.ln"),
    ("predictions", "heads.head"),
)
_VGG_HEAD = {
    "timm": {"fc1": "pre_logits.fc1", "fc2": "pre_logits.fc2", "predictions": "head.fc"},
    "torchvision": {"fc1": "classifier.0", "fc2": "classifier.3", "predictions": "classifier.6"},
}


def _vgg(layers: Sequence[str], dialect: str) -> dict[str, str]:
    """Convolutions, norms, activations and poolings are numbered one after another."""
    features = [layer for layer in layers if re.fullmatch(r"block\d_.*", layer)]
    return {layer: f"features.{i}" for i, layer in enumerate(features)} | _VGG_HEAD[dialect]
