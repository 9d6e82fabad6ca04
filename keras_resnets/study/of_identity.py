"""A residual block can be the identity, and trained ones are close to it.

That a deeper network need be no worse is a construction (He et al. 2015, arXiv:1512.03385, Section 1): the shallow
one with further blocks whose residual branches are zero. That its blocks stay close to the identity is a measurement
(the same, Figure 7: standard deviations of layer responses).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnets.extras import extra
from keras_resnets.models import create_model
from keras_resnets.models.layers import allow_depth
from keras_resnets.study.blocks import CHUNK, Blocks, compiled
from keras_resnets.study.kept import Kept, progress
from keras_resnets.study.networks import FAMILIES
from keras_resnets.study.outcome import Outcome, StudyError
from keras_resnets.study.runs import this_environment
from keras_resnets.study.trained import NETWORKS, Trained, trained_networks

with extra("tensorflow"):
    import keras
    import tensorflow as tf

QUICK = {"images": 300}
_BLOCK = re.compile(r"conv(\d+)_block(\d+)_(.*)")


def identity(
    folder: str | Path,
    *,
    networks: Sequence[str | Path] = NETWORKS,
    images: int = 2_000,
    deeper: str = "resnet56",
    data: str | None = None,
    verbose: bool = True,
) -> Outcome:
    """Measure how strongly the layers of trained networks respond, and how close their blocks are to the identity.

    Args:
        folder: of the study; what is measured is kept there, and not measured again.
        networks: folders of training runs, .keras files, or names with weights of the package.
        images: test images; 0: all.
        deeper: a deeper network that every residual one of `networks` of its family is turned into, with the same
            outputs.
        data: the networks' data set, where they do not tell it.
        verbose: show progress on standard error.

    Returns:
        The outcome.

    Raises:
        StudyError: when a network is not made of blocks.
        WeightsError, DataError: when weights or images cannot be had.
    """
    folder = Path(folder)
    found = []
    chosen = trained_networks(networks, images, data)
    with progress("networks", len(chosen), verbose) as advance:
        for one in chosen:
            found.append(_examine(one, one.kept(folder), deeper))
            advance()
    outcome = Outcome(
        "identity",
        f"How strongly the layers of trained networks respond, {len(chosen[0].images):,} test images",
        {"networks": [one["network"] for one in found], "images": len(chosen[0].images), "deeper": deeper},
        _findings(found, deeper),
        [_row(one) for one in found],
        {"networks": found},
        this_environment(),
    )
    outcome.save(folder)
    return outcome


def _examine(one: Trained, kept: Kept, deeper: str) -> dict[str, Any]:
    return {
        "network": one.name,
        "family": one.family,
        "layers": kept.get("layers", layer_responses, one.model, one.images),
        "blocks": kept.get("blocks", residual_shares, one) or None,
        "deeper": kept.get(f"as {deeper}", _as_deeper, one, deeper),
    }


def layer_responses(model: Any, images: Any) -> list[dict[str, Any]]:
    """Standard deviation of what each convolution of the blocks gives, behind its batch norm and before the
    nonlinearity and the addition, as in Figure 7.

    Raises:
        StudyError: when no batch norm follows the convolutions, as in pre-activation networks.
    """
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization) and _BLOCK.match(layer.name)
    ]
    if not norms or any("preact" in layer.name for layer in norms):
        raise StudyError(
            f"{model.name} has no batch norm behind each convolution: Figure 7 is of original residual nets"
        )
    allow_depth(len(model.layers))
    taps = keras.Model(model.input, [layer.output for layer in norms])
    run = compiled(lambda x: [_moments(value) for value in taps(x, training=False)], model.inputs[0])
    parts = [np.asarray(run(tf.constant(images[i : i + CHUNK]))) for i in range(0, len(images), CHUNK)]
    sums = np.sum(parts, 0)
    means, squares = sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]
    deviations = np.sqrt(squares - means**2)
    return [{"layer": layer.name, "std": float(std)} for layer, std in zip(norms, deviations, strict=True)]


def _moments(value: Any) -> Any:
    value = tf.cast(value, tf.float64)
    count = tf.cast(tf.size(value), tf.float64)
    return tf.stack([tf.reduce_sum(value), tf.reduce_sum(value * value), count])


def residual_shares(one: Trained) -> list[dict[str, Any]]:
    """‖F(x)‖ / ‖x‖ of every block that keeps the shape, over the images; nothing for plain networks."""
    blocks = Blocks(one.model)
    if blocks.blocks[0].addition is None:
        return []
    sums = np.zeros((len(blocks.blocks), 2))
    parts = [compiled(block.apart()[0], block.input) for block in blocks.blocks]
    for first in range(0, len(one.images), CHUNK):
        for number, value in enumerate(blocks.before_each(one.images[first : first + CHUNK])[:-1]):
            shortcut, residual = (np.asarray(tensor, np.float64) for tensor in parts[number](value))
            sums[number] += (residual**2).sum(), (shortcut**2).sum()
    return [
        {"block": blocks.blocks[number].name, "share": float(np.sqrt(sums[number, 0] / sums[number, 1]))}
        for number in blocks.removable
    ]


def deepened(model: Any, deeper: str) -> Any:
    """A deeper network that computes the same: the shallow one's blocks, then blocks whose residual branches are zero.

    Args:
        model: a residual network of the zoo with a batch norm at the end of each branch.
        deeper: name of a network with the same stages, and at least as many blocks in each.

    Raises:
        StudyError: when the two are not such a pair.
    """
    shape, classes = model.inputs[0].shape[1:], model.outputs[0].shape[-1]
    made = create_model(deeper, input_shape=tuple(shape), classes=classes)
    ours = {layer.name: layer for layer in model.layers}
    if any(name not in {layer.name for layer in made.layers} for name, layer in ours.items() if layer.weights):
        raise StudyError(f"{deeper} does not hold all blocks of {model.name}")
    for layer in made.layers:
        if layer.weights and layer.name in ours:
            _copy(ours[layer.name], layer)
    empty = {
        match.group(1, 2) for layer in made.layers if layer.name not in ours and (match := _BLOCK.match(layer.name))
    }
    additions = [layer for layer in made.layers if isinstance(layer, keras.layers.Add)]
    further = [layer for layer in additions if (match := _BLOCK.match(layer.name)) and match.group(1, 2) in empty]
    if len(further) < len(empty):
        raise StudyError(f"{deeper} has blocks without a shortcut, which cannot be the identity")
    for addition in further:
        _silence(addition)
    return made


def _copy(source: Any, target: Any) -> None:
    values = source.get_weights()
    if [value.shape for value in values] != [tuple(weight.shape) for weight in target.weights]:
        raise StudyError(f"{target.name} has other shapes in the deeper network: the two are of different families")
    target.set_weights(values)


def _silence(addition: Any) -> None:
    """Let a residual branch give zeros: scale and shift of its last batch norm are zero."""
    last = addition.input[1]._keras_history.operation
    if not isinstance(last, keras.layers.BatchNormalization):
        raise StudyError(f"the branch of {addition.name} does not end in a batch norm")
    last.gamma.assign(keras.ops.zeros_like(last.gamma))
    last.beta.assign(keras.ops.zeros_like(last.beta))


def _as_deeper(one: Trained, deeper: str) -> dict[str, Any] | None:
    """How the outputs of a residual network compare with those of the deeper one that is made of it."""
    if one.family == "plain":
        return None
    try:
        other = deepened(one.model, deeper)
    except StudyError:
        return None
    ours, theirs = (model.predict(one.images, batch_size=CHUNK, verbose=0) for model in (one.model, other))
    return {
        "difference": float(np.abs(ours - theirs).max()),
        "accuracy": 100 * float((ours.argmax(1) == one.labels).mean()),
        "deeper_accuracy": 100 * float((theirs.argmax(1) == one.labels).mean()),
    }


def _stds(one: Mapping[str, Any]) -> list[float]:
    return [layer["std"] for layer in one["layers"]]


def _row(one: dict[str, Any]) -> dict[str, Any]:
    shares = [block["share"] for block in one["blocks"] or ()]
    return {
        "network": one["network"],
        "layers in blocks": len(one["layers"]),
        "median std of responses": float(np.median(_stds(one))),
        "‖F(x)‖ / ‖x‖, median": float(np.median(shares)) if shares else None,
        "least": min(shares, default=None),
        "greatest": max(shares, default=None),
    }


def _findings(found: Sequence[dict[str, Any]], deeper: str) -> list[str]:
    sentences = []
    for family in FAMILIES:
        mine = sorted((one for one in found if one["family"] == family), key=lambda one: len(one["layers"]))
        told = ", ".join(f"{float(np.median(_stds(one))):.3g} in {one['network']}" for one in mine)
        if mine:
            sentences.append(f"{family}: median standard deviation of the layers' responses {told}")
    for one in found:
        if one["blocks"]:
            share = float(np.median([block["share"] for block in one["blocks"]]))
            sentences.append(
                f"{one['network']}: a block that keeps the shape adds {100 * share:.0f}% of its input (median)"
            )
        if (pair := one["deeper"]) and one["network"].partition(" ")[0] != deeper:
            sentences.append(
                f"{one['network']} as {deeper}, its further blocks empty: {pair['accuracy']:.2f}% and "
                f"{pair['deeper_accuracy']:.2f}%, the probabilities differ by {pair['difference']:.1e} at most"
            )
    return sentences


def draw(outcome: Outcome, file: Path) -> None:
    """Responses by layer and in order of size, as in Figure 7, and the residual's share of each block."""
    from keras_resnets.study.plots import coloured, sheet, write

    figure, axes = sheet(3)
    for one, colour in coloured(outcome.details["networks"]):
        stds = _stds(one)
        axes[0, 0].plot(range(1, len(stds) + 1), stds, color=colour, label=one["network"], linewidth=1.4)
        axes[0, 1].plot(range(1, len(stds) + 1), sorted(stds, reverse=True), color=colour, linewidth=1.4)
        if one["blocks"]:
            shares = [block["share"] for block in one["blocks"]]
            axes[0, 2].plot(np.linspace(0, 1, len(shares)), shares, "o-", color=colour, markersize=3)
    axes[0, 0].set(title="responses by layer", xlabel="layer", ylabel="standard deviation")
    axes[0, 1].set(title="in order of size", xlabel="rank", ylabel="standard deviation")
    axes[0, 2].set(title="what a block adds to its input", xlabel="place in the network", ylabel="‖F(x)‖ / ‖x‖")
    for axis in axes.flat:
        axis.set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(outcome.title)
    write(figure, file)
