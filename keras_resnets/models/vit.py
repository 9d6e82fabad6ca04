"""Vision Transformers of Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words" (arXiv:2010.11929), Table 1.

The residual connection outside convolutions: x + Attention(LN(x)), then x + MLP(LN(x)). The sizes Ti and S are
those of DeiT (Touvron et al. 2021, arXiv:2012.12877, Table 1), whose networks without distillation are the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_resnets.extras import extra
from keras_resnets.models.constructor import constructor
from keras_resnets.models.layers import Face, as_model, checked_rate, classify, drop_path, drop_path_rates, image_input

with extra("tensorflow"):
    import keras
    from keras import layers, ops


class Net(NamedTuple):
    """One row: pixels a patch's side, blocks, width, attention heads."""

    patch: int
    depth: int
    width: int
    heads: int


MLP = 4  # the hidden layer of an MLP, in widths
EPSILON = 1e-6
TABLE = {
    "vit_ti16": Net(16, 12, 192, 3),
    "vit_s16": Net(16, 12, 384, 6),
    "vit_b16": Net(16, 12, 768, 12),
}


@keras.saving.register_keras_serializable("keras_resnets")
class TokensAndPositions(layers.Layer):
    """Puts a learned class token in front of the patches, and adds learned position embeddings (equation 1).

    Args:
        grid: (rows, columns) of patches.

    Input [batch, rows, columns, width], output [batch, 1 + rows · columns, width].
    """

    def __init__(self, grid: tuple[int, int], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.grid = tuple(grid)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the token and the embeddings."""
        width, spread = input_shape[-1], keras.initializers.TruncatedNormal(stddev=0.02)
        self.class_token = self.add_weight(name="class_token", shape=(1, 1, width), initializer=spread)
        self.position_embedding = self.add_weight(
            name="position_embedding", shape=(1, 1 + self.grid[0] * self.grid[1], width), initializer=spread
        )

    def call(self, inputs: Any) -> Any:
        """[batch, rows, columns, width] to [batch, 1 + patches, width]."""
        patches = ops.reshape(inputs, (-1, self.grid[0] * self.grid[1], inputs.shape[-1]))
        # Each image's own token, without asking for the batch size: export keeps it open.
        token = ops.zeros_like(patches[:, :1]) + self.class_token
        return ops.concatenate([token, patches], axis=1) + self.position_embedding

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Shape of the tokens."""
        return (input_shape[0], 1 + self.grid[0] * self.grid[1], input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "grid": self.grid}


def build(net: Net, face: Face, *, drop_path_rate: float, dropout_rate: float) -> Any:
    """The Keras model of one row of TABLE."""
    checked_rate("dropout_rate", dropout_rate)
    rates = drop_path_rates(drop_path_rate, net.depth)
    inputs = image_input(face, (224, 224, 3))
    grid = _grid(inputs, net.patch)
    x = layers.Conv2D(
        net.width, net.patch, net.patch, kernel_initializer=keras.initializers.LecunNormal(), name="patch_embed"
    )(inputs)
    x = TokensAndPositions(grid, name="tokens")(x)
    x = layers.Dropout(dropout_rate, name="tokens_dropout")(x) if dropout_rate else x
    for number, rate in enumerate(rates, start=1):
        x = _block(x, net, f"block{number}", rate, dropout_rate)
    x = layers.LayerNormalization(epsilon=EPSILON, name="norm")(x)
    if face.include_top:
        return classify(x[:, 0], inputs, face, 0.0)
    if face.pooling == "avg":
        x = layers.GlobalAveragePooling1D(name="avg_pool")(x[:, 1:])
    elif face.pooling == "max":
        x = layers.GlobalMaxPooling1D(name="max_pool")(x[:, 1:])
    return as_model(x, inputs, face)


def _grid(inputs: Any, patch: int) -> tuple[int, int]:
    height, width = inputs.shape[1:3]
    if height is None or width is None or height % patch or width % patch:
        raise ValueError(
            f"a Vision Transformer needs a fixed input size in multiples of its patches' {patch} pixels, "
            f"not {height}×{width}"
        )
    return height // patch, width // patch


def _block(x: Any, net: Net, name: str, drop: float, dropout: float) -> Any:
    """x + Attention(LN(x)), then x + MLP(LN(x)): equations 2 and 3."""
    part = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm1")(x)
    part = layers.MultiHeadAttention(net.heads, net.width // net.heads, name=f"{name}_attention")(part, part)
    part = layers.Dropout(dropout, name=f"{name}_attention_dropout")(part) if dropout else part
    x = layers.Add(name=f"{name}_add1")([x, drop_path(part, drop, f"{name}_attention")])
    part = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm2")(x)
    part = layers.Dense(MLP * net.width, activation="gelu", name=f"{name}_mlp1")(part)
    part = layers.Dropout(dropout, name=f"{name}_mlp1_dropout")(part) if dropout else part
    part = layers.Dense(net.width, name=f"{name}_mlp2")(part)
    part = layers.Dropout(dropout, name=f"{name}_mlp2_dropout")(part) if dropout else part
    return layers.Add(name=f"{name}_add2")([x, drop_path(part, drop, f"{name}_mlp")])


OPTIONS = {"drop_path_rate": 0.0, "dropout_rate": 0.0}

ViT_Ti16 = constructor("vit_ti16", build, TABLE, OPTIONS)
ViT_S16 = constructor("vit_s16", build, TABLE, OPTIONS)
ViT_B16 = constructor("vit_b16", build, TABLE, OPTIONS)
