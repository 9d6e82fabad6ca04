"""Times 224×224 training crops from JPEG files: this package's input pipeline against a torch DataLoader with Pillow.

    python benchmarks/input_pipeline.py --torch-python TORCH/bin/python [--rounds 7]

Both do a random resized crop, a mirror in half of the cases and torchvision's normalisation, in batches of 64, in the
same order of one epoch after another, on all cores. torchvision's transforms are written out by hand (Image.open,
crop, bilinear resize, flip, to tensor, normalise), since the Python of --torch-python needs only torch and Pillow.
The pictures are cut out of scikit-learn's two photographs: 512 JPEGs of 500×375 at quality 90, about ImageNet's mean
size. The time is from the first batch on; the result goes to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONTENDERS = ("ours", "torch")
PICTURES, BATCH, SIZE = 512, 64, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_pictures(folder: Path) -> None:
    """Random parts of two photographs, resized to 500×375."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    chance = np.random.default_rng(0)
    for number in range(PICTURES):
        photograph = photographs[number % len(photographs)]
        share = chance.uniform(0.6, 1.0)
        width, height = int(photograph.width * share), int(photograph.height * share)
        left, top = chance.integers(0, photograph.width - width + 1), chance.integers(0, photograph.height - height + 1)
        part = photograph.resize((500, 375), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        (folder / f"class{number % 8}").mkdir(parents=True, exist_ok=True)
        part.save(folder / f"class{number % 8}" / f"{number}.jpg", quality=90)


def ours(folder: Path) -> Iterator[Any]:
    """Batches of this package, epoch after epoch."""
    import numpy as np

    from keras_resnets.data.encoded import FileSplit
    from keras_resnets.data.pipeline import Augmentation, training_batches
    from keras_resnets.preprocessing import Preprocessing

    files = tuple(sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.jpg")))
    split = FileSplit(np.zeros(len(files), np.int64), folder, files)
    # Epochs follow each other without a break, as the workers of the other contender go on.
    split = split.take(np.tile(np.arange(len(files)), 100))
    augmentation = Augmentation(crop="random_resized", flip=True)
    yield from training_batches(split, Preprocessing.preset("torch", SIZE), augmentation, BATCH, 0, 0)


def torch_loader(folder: Path, workers: int) -> Iterator[Any]:
    """Batches of a DataLoader, epoch after epoch."""
    import numpy as np
    import torch
    from PIL import Image

    class Pictures(torch.utils.data.Dataset):
        files = sorted(folder.rglob("*.jpg")) * 100

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            with Image.open(self.files[index]) as opened:
                picture = opened.convert("RGB")
            picture = _random_resized_crop(picture)
            if random.random() < 0.5:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(picture, copy=True)).permute(2, 0, 1).contiguous()
            values = pixels.to(torch.float32).div(255)
            mean, std = (torch.tensor(row).view(-1, 1, 1) for row in (MEAN, STD))
            return values.sub_(mean).div_(std), 0

    yield from torch.utils.data.DataLoader(Pictures(), BATCH, shuffle=True, num_workers=workers, drop_last=True)


def _random_resized_crop(picture: Any) -> Any:
    """torchvision's RandomResizedCrop on a Pillow image."""
    from PIL import Image

    width, height = picture.size
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.randint(0, height - h), random.randint(0, width - w)
            break
    else:
        w, h, top, left = width, height, 0, 0  # 500×375 has an aspect that is allowed
    part = picture.crop((left, top, left + w, top + h))
    return part.resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def measure(contender: str, folder: Path, seconds: float, workers: int) -> None:
    """Read batches and print the rate as JSON; runs in a process of its own."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    batches = iter(ours(folder) if contender == "ours" else torch_loader(folder, workers))
    for _ in range(4):  # the threads and workers are under way
        next(batches)
    began, images = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        images += len(next(batches)[0])
    print(json.dumps({"images_per_second": images / (time.perf_counter() - began)}))
    sys.stdout.flush()
    os._exit(0)  # without waiting for workers and their queues


def compare(options: argparse.Namespace) -> None:
    """Run the contenders in turn, print the medians, write the result file."""
    from importlib.metadata import version

    from paired import cores, in_turn, medians, write_result
    from rich.console import Console

    pythons = {"ours": sys.executable, "torch": options.torch_python}
    with tempfile.TemporaryDirectory() as folder, Console().status("measuring") as status:
        make_pictures(Path(folder))
        arguments = ["--folder", folder, "--seconds", str(options.seconds), "--workers", str(options.workers)]
        commands = {name: [pythons[name], __file__, "--measure", name, *arguments] for name in CONTENDERS}
        rows = in_turn(commands, options.rounds, status.update)
    middle = medians(rows)
    ratio = middle["ours"]["images_per_second"] / middle["torch"]["images_per_second"]
    asked = "import torch, PIL; print(torch.__version__, PIL.__version__)"
    told = subprocess.run([options.torch_python, "-c", asked], check=True, capture_output=True, text=True)
    name = f"input_jpeg224_cpu{cores()}_tf{version('tensorflow')}_torch{told.stdout.split()[0].partition('+')[0]}"
    more = {"torch_and_pillow": told.stdout.strip(), "workers": options.workers, "batch": BATCH, "ratio": ratio}
    file = write_result(name, ("tensorflow", "pillow", "numpy"), rows, **more)
    for contender in CONTENDERS:
        print(f"{contender}: {middle[contender]['images_per_second']:.0f} images/s")
    print(f"ratio {ratio:.2f}; wrote {file}")


def main() -> None:
    """Compare, or measure one contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", help="a Python with torch, NumPy and Pillow")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.folder, options.seconds, options.workers)
    elif options.torch_python:
        compare(options)
    else:
        parser.error("--torch-python is needed")


if __name__ == "__main__":
    main()
