"""Maps folders to packages; everything else about the distribution is in pyproject.toml."""

from setuptools import setup

PACKAGES = {
    "keras_resnets": "keras_resnets",
    "keras_resnets.models": "keras_resnets/models",
    "keras_resnets.weights": "keras_resnets/weights",
    "keras_resnets.data": "keras_resnets/data",
    "keras_resnets.training": "keras_resnets/training",
    "keras_resnets.study": "keras_resnets/study",
    "keras_resnets.export": "export",
    "keras_resnets.serving": "serving",
}

setup(packages=list(PACKAGES), package_dir=PACKAGES)
