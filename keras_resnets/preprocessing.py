"""How an image becomes a network's input: one frozen record and one reference transform.

Evaluation, calibration, prediction and serving all go through `Preprocessing`, so that what a
network is asked in production is what it was asked when its accuracy was measured.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 25_000_000  # decoded; Pillow's own limit of 179 million lets a small file fill the memory
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

ImageLike: TypeAlias = "str | Path | bytes | Image.Image | NDArray[Any]"


class ImageError(ValueError):
    """Something that should be an image cannot be read as one."""


def load_image(source: str | Path | bytes) -> Image.Image:
    """Decode a JPEG, PNG or WebP file (a path, or the file's bytes), upright as its EXIF says.

    Raises:
        ImageError: when it is missing, not an image, truncated, or over 25 million pixels.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{name}: {image.width}×{image.height} is over the limit of 25 million pixels")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder, not an image") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        # Pillow's own limits are higher; its warning is an error where a program makes warnings errors.
        raise ImageError(f"{name} is over the limit of 25 million pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{name} cannot be decoded (truncated or corrupt): {error}") from error


@dataclass(frozen=True)
class Preprocessing:
    """The transform from an image to a float32 tensor: (pixel · scale − mean) / std, channels last.

    Args:
        size: height and width of the network's input, in pixels.
        channels: 3 (colour) or 1 (grey).
        resize: shorter side in pixels before the centre crop; None resizes straight to `size`.
        interpolation: nearest, bilinear, bicubic or lanczos, antialiased as in Pillow.
        scale: multiplies the pixel values 0…255.
        mean, std: one value a channel, in the order of the output's channels.
        bgr: blue first, as Caffe's networks expect.

    Raises:
        ValueError: when a value contradicts another or is out of range.
    """

    size: tuple[int, int]
    channels: int = 3
    resize: int | None = None
    interpolation: str = "bilinear"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    bgr: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _numbers("size", self.size, Integral, int))
        object.__setattr__(self, "mean", _numbers("mean", self.mean, Real, float))
        object.__setattr__(self, "std", _numbers("std", self.std, Real, float))
        object.__setattr__(self, "scale", *_numbers("scale", (self.scale,), Real, float))
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be (height, width) in pixels, not {self.size}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} values each, one a channel")
        if self.scale <= 0:
            raise ValueError(f"scale must be positive, not {self.scale}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
        if self.interpolation not in _RESAMPLING:
            raise ValueError(f"interpolation must be one of {', '.join(_RESAMPLING)}, not {self.interpolation!r}")
        if self.resize is not None and self.resize < max(self.size):
            raise ValueError(f"resize {self.resize} is smaller than the crop {self.size}")
        if self.bgr and self.channels != 3:
            raise ValueError("bgr needs 3 channels")

    @classmethod
    def preset(cls, name: str, size: int | tuple[int, int] = 224, resize: int | None = None) -> Preprocessing:
        """The three ImageNet conventions: "torch" (torchvision, timm, keras.applications' DenseNet),
        "caffe" (keras.applications' ResNet and VGG) and "tf" (its ResNetV2 and MobileNet).

        `resize` is the shorter side before the crop; by default size / 0.875, the usual protocol.

        Raises:
            ValueError: for another name.
        """
        if name not in _PRESETS:
            raise ValueError(f"unknown preset {name!r}; there are {', '.join(_PRESETS)}")
        height, width = (size, size) if isinstance(size, int) else size
        shorter = round(max(height, width) / 0.875) if resize is None else resize
        return cls(size=(height, width), resize=shorter, **_PRESETS[name])

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The record that `to_dict` wrote.

        Raises:
            ValueError: when fields are missing, unknown or wrong.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"not a preprocessing record: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types."""
        data = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    def pixels(self, image: ImageLike) -> NDArray[np.uint8]:
        """Decode, resize and crop one image.

        Args:
            image: a path, an image file's bytes, a Pillow image, or a uint8 array [height, width] or
                [height, width, channels].

        Returns:
            uint8 [height, width, channels], RGB or grey.

        Raises:
            ImageError: when it cannot be read as an image.
        """
        return np.asarray(self._fit(self._decoded(image))).reshape(*self.size, self.channels)

    def uncropped(self, image: ImageLike, shorter: int | None = None) -> NDArray[np.uint8]:
        """Decode and resize one image as `pixels` does, but keep all of it.

        Args:
            image: as for `pixels`.
            shorter: its shorter side in pixels; by default `resize`, and `size` where that is None.

        Returns:
            uint8 [height, width, channels], RGB or grey; it keeps its proportions unless `size` decides.

        Raises:
            ImageError: when it cannot be read as an image, or would exceed 25 million pixels.
        """
        picture = self._scaled(self._decoded(image), self.resize if shorter is None else shorter)
        return np.asarray(picture).reshape(picture.height, picture.width, self.channels)

    def normalize(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """uint8 pixels [..., channels] as the network's float32 input of the same shape."""
        ordered = pixels[..., ::-1] if self.bgr else pixels
        values = ordered.astype(np.float32)
        values *= np.float32(self.scale)
        values -= np.asarray(self.mean, np.float32)
        values /= np.asarray(self.std, np.float32)
        return values

    def denormalize(self, tensor: NDArray[Any]) -> NDArray[np.uint8]:
        """The uint8 pixels [..., channels] that `normalize` made this float tensor of, to the bit."""
        values = (tensor.astype(np.float64) * self.std + self.mean) / self.scale
        pixels = values.round().clip(0, 255).astype(np.uint8)
        return pixels[..., ::-1] if self.bgr else pixels

    def __call__(self, images: Iterable[ImageLike]) -> NDArray[np.float32]:
        """A batch of images (see `pixels`) as float32 [batch, height, width, channels].

        Raises:
            ImageError: when one cannot be read.
        """
        rows = [self.pixels(image) for image in images]
        if not rows:
            return np.empty((0, *self.size, self.channels), np.float32)
        return self.normalize(np.stack(rows))

    def _decoded(self, image: ImageLike) -> Image.Image:
        picture = _as_picture(image)
        if 0 in picture.size:
            raise ImageError(f"an image without pixels: {picture.width}×{picture.height}")
        return _converted(picture, "L" if self.channels == 1 else "RGB")

    def _fit(self, picture: Image.Image) -> Image.Image:
        """Resize and crop, with the roundings of torchvision, whose protocol published accuracies follow."""
        picture = self._scaled(picture, self.resize)
        height, width = self.size
        if picture.size == (width, height):
            return picture
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        return picture.crop((left, top, left + width, top + height))

    def _scaled(self, picture: Image.Image, shorter: int | None) -> Image.Image:
        """The picture with a shorter side of so many pixels; None: with the sides of `size`."""
        height, width = self.size
        method = _RESAMPLING[self.interpolation]
        if shorter is None:
            return picture if picture.size == (width, height) else picture.resize((width, height), method)
        least = min(picture.size)
        sides = (shorter * picture.width // least, shorter * picture.height // least)
        if sides[0] * sides[1] > MAX_PIXELS:
            raise ImageError(f"{picture.width}×{picture.height}, resized to {shorter}, exceeds 25 million pixels")
        return picture.resize(sides, method)


_PRESETS: dict[str, dict[str, Any]] = {
    "torch": {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "caffe": {"mean": (103.939, 116.779, 123.68), "bgr": True},
    "tf": {"scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0)},
}


def _numbers(name: str, values: Iterable[Any], kind: Any, cast: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The values as Python numbers; NumPy's are taken, text and infinities are not."""
    row = tuple(values)
    if not all(isinstance(value, kind) and math.isfinite(value) for value in row):
        raise ValueError(f"{name} must be finite {'integers' if kind is Integral else 'numbers'}, not {row}")
    return tuple(cast(value) for value in row)


def _as_picture(image: ImageLike) -> Image.Image:
    """Upright as its EXIF says."""
    if isinstance(image, Image.Image):
        with _decoding():
            return ImageOps.exif_transpose(image)
    if isinstance(image, (str, Path, bytes)):
        return load_image(image)
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise ImageError(
            f"an image array must be uint8 with values 0…255, not {array.dtype}; "
            "tensors that are already preprocessed go to Engine.run"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        raise ImageError(f"an image array must be [height, width] or [height, width, 1 or 3], not {list(array.shape)}")
    if 0 in array.shape:  # which Pillow cannot hold
        raise ImageError(f"an image without pixels: {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array))


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    with _decoding():
        if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
            pixels = np.asarray(picture).astype(np.uint32) >> 8
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        return picture if picture.mode == mode else picture.convert(mode)


@contextmanager
def _decoding() -> Iterator[None]:
    """Pillow decodes an opened file when it is first used."""
    try:
        yield
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"the image cannot be decoded (truncated or corrupt): {error}") from error


# Of Fashion-MNIST: mean and standard deviation of its 60,000 training images.
FASHION_MNIST = Preprocessing(size=(28, 28), channels=1, scale=1 / 255, mean=(0.286,), std=(0.353,))
