"""Cuts a functional Keras model into segments, each a function of one tensor and of its own variables.

Equal segments (the blocks of a stage) share one traced function, so that TensorFlow prepares a block once and not
200 times. A rematerialized segment keeps its input alone, and computes what is inside again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from keras_resnets.extras import extra

with extra("tensorflow"):
    import keras
    import tensorflow as tf
    from keras.src.models.functional import operation_fn
    from tensorflow.python.ops.resource_variable_ops import variable_accessed

# Fewer equal segments are not worth a function of their own.
SHARED_FROM = 8


class Segment:
    """Part of a model with one tensor going in and one coming out.

    Args:
        nodes: the calls of layers, in the order of computation.
        source: the Keras tensor that goes in.
    """

    def __init__(self, nodes: list[Any], source: Any) -> None:
        self.nodes, self.source, self.result = nodes, source, nodes[-1].outputs[0]
        self.layers = list({id(node.operation): node.operation for node in nodes}.values())
        found = [v for layer in self.layers for v in getattr(layer, "variables", [])]
        self.variables = list({id(v): v for v in found}.values())
        # States of seed generators; the backward pass needs them as they were. A segment reads and writes the rest.
        self.seeds = [v for v in self.variables if not tf.as_dtype(v.dtype).is_floating]
        self.floats = [v for v in self.variables if tf.as_dtype(v.dtype).is_floating]

    def __call__(self, x: Any) -> Any:
        """What the layers compute."""
        values = {id(self.source): x}
        for node in self.nodes:
            args, kwargs = node.arguments.fill_in(values)
            # As a model calls them: with the flag for all, and not with what the first of them makes of it.
            results = operation_fn(node.operation, training=True)(*args, **kwargs)
            values |= {id(t): y for t, y in zip(node.outputs, tf.nest.flatten(results), strict=True)}
        return values[id(self.result)]

    def signature(self) -> Any:
        """Equal for segments that compute the same function of their input and variables; None: nothing is known."""
        if not all(type(layer).__module__.split(".")[0] in ("keras", "keras_resnets") for layer in self.layers):
            return None
        places = {id(self.source): 0}
        rows: list[Any] = [self.source.shape, self.source.dtype]
        for node in self.nodes:
            places |= {id(tensor): len(places) + i for i, tensor in enumerate(node.outputs)}
            inputs = [places[id(tensor)] for tensor in node.arguments.keras_tensors]
            numbered = partial(_numbered, places)
            structure = tf.nest.map_structure(numbered, (node.arguments.args, node.arguments.kwargs))
            rows.append((self.layers.index(node.operation), inputs, structure))
        rows += [(type(layer), _config(layer)) for layer in self.layers]
        rows += [(v.shape, v.dtype, v.trainable) for v in self.variables]
        return repr(rows)


def _numbered(places: dict[int, int], argument: Any) -> Any:
    return places[id(argument)] if isinstance(argument, keras.KerasTensor) else repr(argument)


def _config(layer: Any) -> Any:
    config = layer.get_config()
    # What a variable starts from, and what it is called, does not change what is computed.
    return {k: v for k, v in config.items() if k not in ("name", "seed") and not k.endswith("_initializer")}


def cut(model: Any) -> list[Segment]:
    """The segments of a functional model, in order; one or none where it cannot be cut.

    A cut is where all that follows depends on one tensor, and a residual branch begins or a further kernel follows.
    """
    if not _can_be_cut(model):
        return []
    segments, nodes, source = [], [], model.inputs[0]
    for node, following in _pinches(model):
        nodes.append(node)
        weights = any(getattr(n.operation, "variables", None) for n in nodes)
        begins = following and (len(following) > 1 or hasattr(following[0].operation, "kernel"))
        if following is None or (begins and weights):
            segments.append(Segment(nodes, source))
            nodes, source = [], node.outputs[0]
    return segments


def merged(segments: list[Segment], number: int) -> list[Segment]:
    """Segments that are `number` ones each; the last stays alone."""
    if len(segments) < 2:
        return segments
    parts = [segments[:-1][i : i + number] for i in range(0, len(segments) - 1, number)]
    return [Segment([node for s in part for node in s.nodes], part[0].source) for part in (*parts, segments[-1:])]


def _can_be_cut(model: Any) -> bool:
    tensors = [tensor for node in _nodes(model) for tensor in node.outputs]
    masked = any(getattr(tensor, "_keras_mask", None) is not None for tensor in tensors)
    adds_losses = any(getattr(layer, "activity_regularizer", None) for layer in model._flatten_layers())
    return len(model.inputs) == len(model.outputs) == 1 and not masked and not adds_losses


def _nodes(model: Any) -> list[Any]:
    """The calls of the model's layers in the order of computation."""
    by_depth = model._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def _pinches(model: Any) -> Iterator[tuple[Any, list[Any] | None]]:
    """Each node, and with it those that follow where all of them depend on its output; else an empty list; None at
    the end."""
    nodes = _nodes(model)
    readers: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        for tensor in node.arguments.keras_tensors:
            readers.setdefault(id(tensor), []).append(i)
    live: dict[int, int] = {id(model.inputs[0]): max(readers[id(model.inputs[0])])}
    for i, node in enumerate(nodes):
        live |= {id(tensor): readers[id(tensor)][-1] for tensor in node.outputs if id(tensor) in readers}
        live = {key: last for key, last in live.items() if last > i}
        if i == len(nodes) - 1:
            yield node, None
        elif list(live) == [id(node.outputs[0])]:
            yield node, [nodes[j] for j in readers[id(node.outputs[0])]]
        else:
            yield node, []


class SegmentFunction:
    """One traced function for all segments that are equal to the first.

    Args:
        segment: the first.
        forms: a context in which layers compute in their training form.
        remat: compute what is inside again in the backward pass.
    """

    def __init__(self, segment: Segment, forms: Callable[[], AbstractContextManager[None]], remat: bool) -> None:
        self._segment, self._forms, self._remat = segment, forms, remat
        self._inside = _Training(segment)
        # Inlined, hundreds of copies would be prepared one by one; and rematerialization would be optimized away.
        own = {"_noinline": True}
        self._forward = tf.function(self._body, autograph=False, experimental_attributes=own)
        self._backward = tf.function(self._gradients, autograph=False, experimental_attributes=own)

    def __call__(self, segment: Segment, x: Any) -> Any:
        """What a segment makes of a tensor; its moving statistics and seed generators go on."""
        for variable in segment.floats:
            if variable.trainable:
                variable_accessed(variable.value)  # a tape shall watch it, as if it were read here
        seeds = [tf.convert_to_tensor(variable.value) for variable in segment.seeds]
        y, *news = self._forward(x, seeds, [variable.value.handle for variable in segment.floats])
        for variable, new in zip(segment.seeds, news, strict=True):
            variable.assign(new)
        return y

    def _body(self, x: Any, seeds: list[Any], handles: list[Any]) -> list[Any]:
        """The segment's result, and the seeds of the next step; moving statistics are written."""
        values = self._read(handles)
        number = len(seeds)

        def recomputed(x: Any, *values: Any) -> Any:
            def gradient(upstream: Any, *_: Any) -> Any:
                return self._backward(upstream, x, seeds, handles)

            return self._run(x, seeds, values), gradient

        y, *news = tf.custom_gradient(recomputed)(x, *values) if self._remat else self._run(x, seeds, values)
        for handle, old, new, variable in zip(handles, values, news[number:], self._segment.floats, strict=True):
            if new is not old and not variable.trainable:
                tf.raw_ops.AssignVariableOp(resource=handle, value=new)
        return [y, *news[:number]]

    def _read(self, handles: list[Any]) -> list[Any]:
        return [
            tf.ensure_shape(tf.raw_ops.ReadVariableOp(resource=handle, dtype=variable.dtype), variable.shape)
            for handle, variable in zip(handles, self._segment.floats, strict=True)
        ]

    def _run(self, x: Any, seeds: Any, values: Any) -> list[Any]:
        """The segment's result, and the new values of its seeds and floats."""
        variables = [*self._segment.seeds, *self._segment.floats]
        scope = keras.StatelessScope(list(zip(variables, [*seeds, *values], strict=True)))
        with self._forms(), scope:
            y = self._inside(x, training=True)
        return [y, *(scope.get_current_value(variable) for variable in variables)]

    def _gradients(self, upstream: Any, x: Any, seeds: list[Any], handles: list[Any]) -> list[Any]:
        """The gradients of x and of the floats."""
        values = self._read(handles)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([x, *values])
            y = self._run(x, seeds, values)[0]
        dx, found = tape.gradient(y, (x, values), upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [dx, *found]


class _Training(keras.layers.Layer):
    """Tells the layers of a segment that they train, as a model's call does."""

    def __init__(self, segment: Segment) -> None:
        super().__init__(autocast=False, name="segment")
        object.__setattr__(self, "segment", segment)  # the layers inside are the model's, not this one's

    def call(self, x: Any, training: bool | None = None) -> Any:
        """What the segment computes."""
        return self.segment(x)


class Segmented:
    """A model's forward pass, segment by segment; call it where layers compute in their training form.

    Args:
        model: a functional model.
        forms: see `SegmentFunction`.
        remat: rematerialize each segment but the last.
    """

    def __init__(self, model: Any, forms: Callable[[], AbstractContextManager[None]], remat: bool) -> None:
        self._model = model
        self.calls: list[tuple[SegmentFunction | None, Segment]] = []
        segments = cut(model)
        if remat:
            # Several at a time keep less; but what is inside is in memory at once, and takes longer to prepare.
            segments = merged(segments, max(1, round(len(segments) ** 0.25)))
        signatures = [segment.signature() for segment in segments]
        functions: dict[str, SegmentFunction] = {}
        for i, (segment, signature) in enumerate(zip(segments, signatures, strict=True)):
            equal = signatures.count(signature) if signature else 1
            last = i == len(segments) - 1
            if not last and (remat or equal >= SHARED_FROM):
                key = signature or f"segment {i}"
                if key not in functions:
                    functions[key] = SegmentFunction(segment, forms, remat)
                self.calls.append((functions[key], segment))
            else:
                self.calls.append((None, segment))
        self.functions = list(functions.values())

    def __call__(self, images: Any) -> Any:
        """The model's output for images, in training mode."""
        x = tf.cast(images, self._model.inputs[0].dtype)
        for function, segment in self.calls:
            x = function(segment, x) if function else _Training(segment)(x, training=True)
        return x
