"""The registry: every model with its paper, size and cost. Importing it loads neither Keras nor TensorFlow."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
from dataclasses import dataclass
from typing import Any

_Published = tuple[str, str] | None  # a count with its digits, and where it stands
_SHORTCUTS = "{} (identity where shapes agree, else %s), or A, B, C of He et al. 2015"
_ZEROS = _SHORTCUTS % "zeros in the new channels"
_PROJECTION = _SHORTCUTS % "a projection"


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it is built, for its default variant, input and number of classes.

    Args:
        name: its name in the registry.
        constructor: its constructor in `keras_resnets`.
        module: the family's file.
        paper: where it was published.
        parameters: trainable parameters.
        multiply_adds: of convolutions and dense layers, for one image; papers call these FLOPs.
        input_shape: default (height, width, channels).
        classes: default number of classes.
        published: the parameter count that was published (with its digits), and where; None if none was.
        variants: the choices of `variant`.
        shortcuts: the choices of `shortcut`.
    """

    name: str
    constructor: str
    module: str
    paper: str
    parameters: int
    multiply_adds: int
    input_shape: tuple[int, int, int]
    classes: int
    published: _Published
    variants: str
    shortcuts: str

    @property
    def flops(self) -> int:
        """Floating-point operations for one image: two a multiply-add."""
        return 2 * self.multiply_adds


_VARIANTS_2015 = (
    '"v1.5" (stride on the 3×3, as torchvision and timm), "paper" (on the first 1×1), '
    '"keras" (keras.applications: as the paper, with biased convolutions)'
)
_VARIANTS_2016 = (
    "\"paper\" (stride in a stage's first block, as the authors' code and timm), "
    '"keras" (keras.applications: in its last block, with biases)'
)


def _he2015(constructor: str, parameters: int, multiply_adds: int, published: _Published = None) -> ModelInfo:
    imagenet = constructor.endswith(("18", "34", "50", "101", "152"))
    plain = constructor.startswith("Plain")
    where = "Table 1" if imagenet else "Section 4.2"
    return _record(
        (constructor, parameters, multiply_adds, published),
        "resnet",
        f"He et al. 2015, arXiv:1512.03385, {where}" + (", without shortcuts" if plain else ""),
        imagenet,
        _VARIANTS_2015,
        "none to choose" if plain else _PROJECTION.format("B") if imagenet else _ZEROS.format("A"),
    )


def _he2016(constructor: str, parameters: int, multiply_adds: int, published: _Published = None) -> ModelInfo:
    imagenet = constructor.endswith(("18V2", "34V2", "50V2", "101V2", "152V2", "200V2"))
    return _record(
        (constructor, parameters, multiply_adds, published),
        "resnet_v2",
        f"He et al. 2016, arXiv:1603.05027, {'Section 5' if imagenet else 'Table 4'}",
        imagenet,
        _VARIANTS_2016,
        _PROJECTION.format("B"),
    )


def _record(
    row: tuple[str, int, int, _Published], module: str, paper: str, imagenet: bool, variants: str, shortcuts: str
) -> ModelInfo:
    constructor, parameters, multiply_adds, published = row
    return ModelInfo(
        name=constructor.lower(),
        constructor=constructor,
        module=f"keras_resnets.models.{module}",
        paper=paper,
        parameters=parameters,
        multiply_adds=multiply_adds,
        input_shape=(224, 224, 3) if imagenet else (32, 32, 3),
        classes=1000 if imagenet else 10,
        published=published,
        variants=variants,
        shortcuts=shortcuts,
    )


_TORCHVISION = "torchvision 0.28"
_TIMM = "timm 1.0.31, resnetv2"
_HE2015 = "He et al. 2015, Table 6"
_HE2016 = "He et al. 2016, Table 4"
_MODELS = (
    _he2015("ResNet18", 11_689_512, 1_814_073_344, ("11,689,512", _TORCHVISION)),
    _he2015("ResNet34", 21_797_672, 3_663_761_408, ("21,797,672", _TORCHVISION)),
    _he2015("ResNet50", 25_557_032, 4_089_184_256, ("25,557,032", _TORCHVISION)),
    _he2015("ResNet101", 44_549_160, 7_801_405_440, ("44,549,160", _TORCHVISION)),
    _he2015("ResNet152", 60_192_808, 11_513_626_624, ("60,192,808", _TORCHVISION)),
    _he2015("PlainNet18", 11_515_688, 1_794_805_760),
    _he2015("PlainNet34", 21_623_848, 3_644_493_824),
    _he2015("PlainNet50", 22_780_456, 3_729_522_688),
    _he2015("PlainNet101", 41_772_584, 7_441_743_872),
    _he2015("PlainNet152", 57_416_232, 11_153_965_056),
    _he2015("ResNet20", 269_722, 40_551_040, ("0.27M", _HE2015)),
    _he2015("ResNet32", 464_154, 68_862_592, ("0.46M", _HE2015)),
    _he2015("ResNet44", 658_586, 97_174_144, ("0.66M", _HE2015)),
    _he2015("ResNet56", 853_018, 125_485_696, ("0.85M", _HE2015)),
    _he2015("ResNet110", 1_727_962, 252_887_680, ("1.7M", _HE2015)),
    _he2015("ResNet1202", 19_421_274, 2_829_238_912, ("19.4M", _HE2015)),
    _he2015("PlainNet20", 269_722, 40_551_040),
    _he2015("PlainNet32", 464_154, 68_862_592),
    _he2015("PlainNet44", 658_586, 97_174_144),
    _he2015("PlainNet56", 853_018, 125_485_696),
    _he2015("PlainNet110", 1_727_962, 252_887_680),
    _he2016("ResNet18V2", 11_687_720, 1_814_073_344, ("11,687,720", _TIMM)),
    _he2016("ResNet34V2", 21_795_880, 3_663_761_408, ("21,795,880", _TIMM)),
    _he2016("ResNet50V2", 25_549_352, 4_089_184_256, ("25,549,352", _TIMM)),
    _he2016("ResNet101V2", 44_541_480, 7_801_405_440, ("44,541,480", _TIMM)),
    _he2016("ResNet152V2", 60_185_128, 11_513_626_624, ("60,185,128", _TIMM)),
    _he2016("ResNet200V2", 64_666_152, 15_007_481_856),
    _he2016("ResNet20V2", 272_282, 40_813_184),
    _he2016("ResNet56V2", 855_578, 125_747_840),
    _he2016("ResNet110V2", 1_730_522, 253_149_824, ("1.7M", _HE2016)),
    _he2016("ResNet164V2", 1_703_258, 247_646_720, ("1.7M", _HE2016)),
    _he2016("ResNet1001V2", 10_327_706, 1_490_995_712, ("10.2M", f"{_HE2016}, without batch norm")),
)
REGISTRY = {info.name: info for info in _MODELS}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, in the order of the papers; `pattern` as in a shell: "resnet*v2"."""
    return [name for name in REGISTRY if fnmatch.fnmatch(name, pattern.lower())]


def model_info(name: str) -> ModelInfo:
    """What is known of a model: paper, parameters, multiply-adds, default input.

    Args:
        name: a name of `list_models()`, in any case.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest ones.
    """
    info = REGISTRY.get(name.lower())
    if info is None:
        near = difflib.get_close_matches(name.lower(), REGISTRY, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see keras_resnets.list_models()"
        raise ValueError(f"unknown model {name!r}: {hint}")
    return info


def create_model(name: str, **arguments: Any) -> Any:
    """Build a model by name: `create_model("resnet50", classes=10)` is `ResNet50(classes=10)`.

    Args:
        name: a name of `list_models()`, in any case.
        **arguments: the constructor's.

    Raises:
        ValueError: for an unknown name, or arguments that cannot be meant.
    """
    info = model_info(name)
    return getattr(importlib.import_module(info.module), info.constructor)(**arguments)
