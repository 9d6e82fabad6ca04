"""Makes a very deep network that was never trained usable: each block starts close to the identity."""

from __future__ import annotations

from typing import Any

from keras_resnets.extras import extra

with extra("tensorflow"):
    import keras


def damp_residuals(model: Any, factor: float = 0.1) -> int:
    """Scale what every residual block adds to its shortcut, in place.

    With initial batch-norm statistics each block doubles the signal's variance: 300 blocks exceed float32.
    Damped, it grows by 1 + factor² a block instead. Starting from the identity is also how very deep networks
    are trained well (Goyal et al. 2017, arXiv:1706.02677, with factor 0; De and Smith 2020, arXiv:2002.10444).

    Args:
        model: a network of this package, or any whose blocks end in Add([shortcut, residual]).
        factor: multiplies what the last layers with weights in front of each addition give.

    Returns:
        The number of blocks.

    Raises:
        ValueError: when the model has no residual block.
    """
    additions = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Add)]
    if not additions:
        raise ValueError(f"{model.name} has no residual blocks")
    for addition in additions:
        for variable in _last_linear(addition.input[1]):
            variable.assign(variable * factor)
    return len(additions)


def _last_linear(tensor: Any) -> list[Any]:
    """The variables in which a residual branch's output is linear."""
    layer = tensor._keras_history.operation
    if isinstance(layer, keras.layers.MultiHeadAttention):
        return [v for v in layer.trainable_variables if v.path.split("/")[-2] == "attention_output"]
    if layer.trainable_variables:
        return list(layer.trainable_variables)
    # Dropout, and the channels' weights of squeeze-and-excitation, stand behind it: the first input is the branch.
    return _last_linear(layer.input[0] if isinstance(layer.input, list) else layer.input)
