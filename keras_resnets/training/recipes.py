"""Recipes: one function a published result, and those that were run here; each docstring says with what result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from keras_resnets.training.config import Recipe

_IMAGENET = "imagenet:imagenet"  # a folder of TFRecords beside the run; --data imagenet:PATH names another


def digits() -> Recipe:
    """ResNet-20 on scikit-learn's handwritten digits, 8×8.

    Command: keras-resnets train --recipe digits
    Data: 1,437 images, embedded in scikit-learn. Chosen on 200 of them held out (99.0%).
    Hardware and time: 2 CPU cores, half a minute.
    Test accuracy: 99.17% (357 of the 360 held-out digits; seed 0).
    """
    return Recipe(model="resnet20", data="digits", epochs=30, batch_size=64, learning_rate=0.1, warmup_epochs=2, pad=1)


def fashion_mnist() -> Recipe:
    """ResNet-20 on Fashion-MNIST, 28×28.

    Command: keras-resnets train --recipe fashion_mnist
    Data: 60,000 images. Nothing was chosen on them: the settings are usual ones.
    Hardware and time: 2 CPU cores; 52 minutes, while other jobs ran on the same cores.
    Test accuracy: 94.06% (10,000 images; seed 0). Log: benchmarks/results/train_fashion_mnist_resnet20_seed0.
    """
    return Recipe(
        model="resnet20",
        data="fashion_mnist",
        epochs=18,
        learning_rate=0.1,
        warmup_epochs=3,
        pad=2,
        flip=True,
    )


def fashion_mnist_wide() -> Recipe:
    """WRN-16-4 on Fashion-MNIST, 28×28, in bfloat16.

    Command: keras-resnets train --recipe fashion_mnist_wide
    Data: 60,000 images. Nothing was chosen on them: the settings are those of wide networks on CIFAR-10.
    Hardware and time: 2 CPU cores that have bfloat16 arithmetic; 5.2 minutes an epoch while nothing else ran.
    Test accuracy: 95.04% (10,000 images; seed 0). Log: benchmarks/results/train_fashion_mnist_wrn16_4_seed0. The test
    images were read once before: 12 epochs gave 94.48%, and the number of epochs alone was changed.
    """
    return Recipe(
        model="wrn16_4",
        data="fashion_mnist",
        epochs=20,
        learning_rate=0.1,
        warmup_epochs=2,
        nesterov=True,
        weight_decay=5e-4,
        precision="bfloat16",
        pad=2,
        flip=True,
    )


def he2015_cifar() -> Recipe:
    """The CIFAR-10 networks of He et al. 2015 (arXiv:1512.03385), Section 4.2.

    Command: keras-resnets train --recipe he2015_cifar --model resnet56
    Data: CIFAR-10, 50,000 images. The paper divides the rate at 32,000 and 48,000 of 64,000 iterations (164 epochs),
    and pads by 4; networks of 110 layers start with 400 iterations at a rate of 0.01: --warmup-epochs 1
    --warmup-rate 0.01 --warmup-constant. ResNet-1202 too, and more patience.
    Hardware and time: the paper's was two GPUs. Not run here.
    Test accuracy, published (Table 6): ResNet-20 91.25%, 32 92.49%, 44 92.83%, 56 93.03%, 110 93.57%, 1202 92.07%.
    """
    return Recipe(model="resnet20", data="cifar10", epochs=164, learning_rate=0.1, schedule="step", pad=4, flip=True)


def wide_resnet_cifar() -> Recipe:
    """WRN-28-10 on CIFAR-10 of Zagoruyko and Komodakis 2016 (arXiv:1605.07146), Section 3.

    Command: keras-resnets train --recipe wide_resnet_cifar --data cifar100
    Data: CIFAR-10 or CIFAR-100, 50,000 images.
    Hardware and time: not run here.
    Test accuracy, published (Table 5, without dropout): CIFAR-10 96.00%, CIFAR-100 80.75%.
    """
    return Recipe(
        model="wrn28_10",
        data="cifar10",
        epochs=200,
        learning_rate=0.1,
        schedule="step",
        milestones=(0.3, 0.6, 0.8),
        rate_drop=0.2,
        nesterov=True,
        weight_decay=5e-4,
        pad=4,
        flip=True,
    )


def densenet_cifar() -> Recipe:
    """DenseNet-BC (100 layers, growth 12) on CIFAR-10 of Huang et al. 2017 (arXiv:1608.06993), Section 4.2.

    Command: keras-resnets train --recipe densenet_cifar
    Data: CIFAR-10, 50,000 images, augmented by padding and flipping.
    Hardware and time: not run here.
    Test accuracy, published (Table 2, C10+): 95.49%; CIFAR-100 77.73%.
    """
    return Recipe(
        model="densenetbc100_12",
        data="cifar10",
        epochs=300,
        batch_size=64,
        learning_rate=0.1,
        schedule="step",
        nesterov=True,
        pad=4,
        flip=True,
    )


def he2015_imagenet() -> Recipe:
    """The ImageNet networks of He et al. 2015 (arXiv:1512.03385), Section 3.4.

    Command: keras-resnets train --recipe he2015_imagenet --model resnet34 --data imagenet:PATH
    Data: ImageNet-1k as TFRecords, 1.28 million images. The shorter side is random in [256, 480]; the rate is divided
    by 10 when the error plateaus (here: the loss, on 10,000 images held out of the training set), from 0.1 for a
    batch of 256; about 600,000 iterations.
    Evaluation: keras-resnets evaluate RUN --crops 10, or --scales 224,256,384,480,640.
    Hardware and time: not run here.
    Top-1 error, published (Table 3, 10 crops): ResNet-34 B 24.52%, ResNet-50 22.85%, ResNet-152 21.43%.
    """
    return Recipe(
        model="resnet50",
        data=_IMAGENET,
        epochs=120,
        batch_size=256,
        variant="paper",
        learning_rate=0.1,
        rate_batch=256,
        schedule="plateau",
        patience=5,
        validation=10_000,
        crop="shorter_side",
        flip=True,
    )


def resnet50_v15() -> Recipe:
    """ResNet-50 v1.5 in 90 epochs, as NVIDIA's and torchvision's references train it.

    Command: keras-resnets train --recipe resnet50_v15 --data imagenet:PATH --precision bfloat16
    Data: ImageNet-1k as TFRecords. Rate 0.256 for 256 images, scaled to the batch; momentum 0.875, decay 1/32768 of
    kernels alone, label smoothing 0.1, cosine after 5 epochs of warm-up.
    Hardware and time: not run here.
    Top-1 accuracy, published: torchvision's first weights 76.13% (90 epochs, steps, no smoothing).
    """
    return Recipe(
        model="resnet50",
        data=_IMAGENET,
        epochs=90,
        batch_size=256,
        learning_rate=0.256,
        rate_batch=256,
        momentum=0.875,
        weight_decay=1 / 32768,
        label_smoothing=0.1,
        warmup_epochs=5,
        crop="random_resized",
        flip=True,
    )


def strikes_back_a1() -> Recipe:
    """ResNet-50 after "ResNet strikes back", procedure A1 (Wightman et al. 2021, arXiv:2110.00476, Table 2).

    Command: keras-resnets train --recipe strikes_back_a1 --data imagenet:PATH
    Data: ImageNet-1k as TFRecords, 600 epochs at 224 pixels, batch 2048; not repeated augmentation, which the paper
    has (three times in a batch).
    Hardware and time: the paper's was 4 V100 GPUs, 110 hours. Not run here.
    Top-1 accuracy, published: 80.4%.
    """
    return replace(
        strikes_back_a2(), epochs=600, label_smoothing=0.1, weight_decay=0.01, mixup=0.2, drop_path_rate=0.05
    )


def strikes_back_a2() -> Recipe:
    """ResNet-50 after "ResNet strikes back", procedure A2 (Wightman et al. 2021, arXiv:2110.00476, Table 2).

    Command: keras-resnets train --recipe strikes_back_a2 --data imagenet:PATH
    Data: ImageNet-1k as TFRecords, 300 epochs at 224 pixels, batch 2048; not repeated augmentation, which the paper
    has.
    Hardware and time: the paper's was 4 V100 GPUs, 55 hours. Not run here.
    Top-1 accuracy, published: 79.8%.
    """
    return replace(
        strikes_back_a3(),
        epochs=300,
        image_size=224,
        learning_rate=5e-3,
        drop_path_rate=0.05,
        rand_augment_magnitude=7,
    )


def strikes_back_a3() -> Recipe:
    """ResNet-50 after "ResNet strikes back", procedure A3 (Wightman et al. 2021, arXiv:2110.00476, Table 2).

    Command: keras-resnets train --recipe strikes_back_a3 --data imagenet:PATH
    Data: ImageNet-1k as TFRecords, 100 epochs at 160 pixels, batch 2048.
    Hardware and time: the paper's was 4 V100 GPUs, 15 hours. Not run here.
    Top-1 accuracy, published: 78.1% at 224 pixels.
    """
    return Recipe(
        model="resnet50",
        data=_IMAGENET,
        epochs=100,
        batch_size=2048,
        image_size=160,
        optimizer="lamb",
        learning_rate=8e-3,
        rate_batch=2048,
        warmup_epochs=5,
        weight_decay=0.02,
        loss="binary",
        crop="random_resized",
        flip=True,
        rand_augment=2,
        rand_augment_magnitude=6,
        mixup=0.1,
        cutmix=1.0,
    )


def vit() -> Recipe:
    """ViT-S/16 from scratch on ImageNet-1k, after Beyer et al. 2022 (arXiv:2205.01580), 90 epochs.

    Command: keras-resnets train --recipe vit --data imagenet:PATH
    Data: ImageNet-1k as TFRecords, batch 1024, RandAugment (2, 10) and mixup 0.2; the paper's network pools the
    patches and has fixed position embeddings, ours the class token of Dosovitskiy et al. 2020.
    Hardware and time: the paper's was a TPUv3-8, 7 hours. Not run here.
    Top-1 accuracy, published: 76.5%.
    """
    return Recipe(
        model="vit_s16",
        data=_IMAGENET,
        epochs=90,
        batch_size=1024,
        optimizer="adamw",
        learning_rate=1e-3,
        rate_batch=1024,
        warmup_epochs=8,
        weight_decay=0.1,
        clip_norm=1.0,
        crop="random_resized",
        min_area=0.05,
        flip=True,
        rand_augment=2,
        rand_augment_magnitude=10,
        mixup=0.2,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    make.__name__: make
    for make in (
        digits, fashion_mnist, fashion_mnist_wide, he2015_cifar, wide_resnet_cifar, densenet_cifar, he2015_imagenet,
        resnet50_v15, strikes_back_a1, strikes_back_a2, strikes_back_a3, vit,
    )
}  # fmt: skip
