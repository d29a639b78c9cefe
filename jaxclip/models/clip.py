"""The whole model: two towers and a temperature (`clip/model.py: CLIP`).

Annotated: chapter 4, "The two towers".
"""

import math
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxclip import checkpoint
from jaxclip.config import ClipConfig, ResNetConfig, short_repr
from jaxclip.losses import l2_normalize
from jaxclip.models.encoders import Encoders, Notes, image_features, text_features
from jaxclip.models.inputs import check_embeds, check_images, check_tokens, on_any_mesh
from jaxclip.models.layers import (
    Numerics,
    at_least_float32,
)
from jaxclip.models.parameters import new_statistics
from jaxclip.models.resnet import ModifiedResNet
from jaxclip.models.starts import Initialiser, Shapes
from jaxclip.models.text import make_text_tower
from jaxclip.models.vit import VisionTransformer

Array = jax.Array
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # section 2.5
INITIAL_LOGIT_BIAS = -10.0  # nearly all pairs of a batch are wrong ones


def logits(
    image_embeds: Array,
    text_embeds: Array,
    logit_scale: Array,
    logit_bias: Array | None = None,
    *,
    precision: str | None = None,
) -> Array:
    """logits_per_image [n_i, n_t] of embeddings [n_i, e] and [n_t, e]: exp(t) cosines + b.

    Args:
      image_embeds, text_embeds: rows of length one.
      logit_scale: the logarithm t of the factor on the cosines.
      logit_bias: b, of a model that was trained with SigLIP's loss.
      precision: of the product, jax's.
    """
    cosines = jnp.matmul(image_embeds, text_embeds.T, precision=precision)  # [n_i, n_t]
    scaled = jnp.exp(logit_scale) * cosines
    return scaled if logit_bias is None else scaled + logit_bias


def probabilities(logits_per_image: Array, *, sigmoid: bool) -> Array:
    """How likely each text is, by image: [n_i, n_t] -> [n_i, n_t].

    One text of all (softmax over a row), or each text on its own where the model was trained so
    (`sigmoid`: `ClipConfig.logit_bias`).
    """
    if sigmoid:
        return jax.nn.sigmoid(logits_per_image)
    return jax.nn.softmax(logits_per_image, axis=1)


# What runs under jit ------------------------------------------------------------------------------


@on_any_mesh
def similarity(model: "Clip", image_embeds: Array, text_embeds: Array) -> Array:
    """image_embeds [n_i, e], text_embeds [n_t, e] -> logits_per_image [n_i, n_t]."""
    tower = model.visual if hasattr(model, "visual") else model.text
    temperature = (parameter[...] for parameter in model.temperature())
    return logits(image_embeds, text_embeds, *temperature, precision=tower.numerics.precision)


def both_logits(model: "Clip", images: Array, tokens: Array) -> tuple[Array, Array]:
    """images [n_i, h, w, c], tokens [n_t, l] -> (logits_per_image [n_i, n_t], its transpose)."""
    logits_per_image = similarity(model, *model.embed(images, tokens))
    return logits_per_image, logits_per_image.T


class Clip(Encoders):
    """Image tower, text tower and the log temperature: a Flax NNX module and a JAX pytree.

    Its own methods are compiled once per shape, unless `jit` is False. `visual` and `text` are the
    towers, `logit_scale` and SigLIP's `logit_bias` the temperature, `config` is frozen, and `notes`
    say where the weights are from.
    """

    def __init__(
        self,
        config: ClipConfig,
        *,
        init: Initialiser,
        remat: str = "full",
        numerics: Numerics = Numerics(),
    ) -> None:
        towers: dict[str, Any] = {"numerics": numerics, "init": init}
        tower = ModifiedResNet if isinstance(config.vision, ResNetConfig) else VisionTransformer
        self.visual = tower(config, remat=remat, **towers)
        self.text = make_text_tower(config, remat=remat, **towers)
        scale = math.log(10) if config.logit_bias else INITIAL_LOGIT_SCALE
        self.logit_scale = init.constant((), scale)
        if config.logit_bias:  # SigLIP (arXiv 2303.15343), section 3.2; not in the paper
            self.logit_bias = init.constant((), INITIAL_LOGIT_BIAS)
        self.config = config
        self.notes: Notes = nnx.data(Notes())

    @classmethod
    def from_config(cls, config: ClipConfig, key: Array | int = 0, **options: Any) -> "Clip":
        """A model with fresh random weights: `create`."""
        return create(config, key, **options)

    def __call__(
        self, images: np.ndarray | Array, tokens: np.ndarray | Array
    ) -> tuple[Array, Array]:
        """images [n_i, h, w, c], tokens [n_t, l] -> (logits_per_image [n_i, n_t], its transpose).

        Logits are float32. Arguments and errors as of `encode_image` and `encode_text`.
        """
        self._require_tower("image", "text")
        images = check_images(images, self.config.vision.image_sides)
        return self._run(both_logits, images, check_tokens(tokens, self.config.text))

    def logits(self, image_embeds: np.ndarray | Array, text_embeds: np.ndarray | Array) -> Array:
        """logits_per_image [n_i, n_t] of embeddings [n_i, e] and [n_t, e], rows of length one.

        One tower is enough: the embeddings may be older than the model. ValueError for other
        shapes.
        """
        both = (check_embeds(each, self.config.embed_dim) for each in (image_embeds, text_embeds))
        return self._run(similarity, *both)

    def probabilities(self, logits_per_image: np.ndarray | Array) -> Array:
        """How likely each text is, by image: logits [n_i, n_t] -> [n_i, n_t].

        Softmax over the texts; sigmoid, each text on its own, for a model that was trained with
        SigLIP's loss (`config.logit_bias`).
        """
        sigmoid = self.config.logit_bias
        return probabilities(jnp.asarray(logits_per_image), sigmoid=sigmoid)

    @overload
    def embed(
        self, images: Array, tokens: Array, *, train: Literal[False] = False
    ) -> tuple[Array, Array]: ...

    @overload
    def embed(
        self, images: Array, tokens: Array, *, train: Literal[True], axis: str | None = None
    ) -> tuple[Array, Array, Any]: ...

    def embed(
        self, images: Array, tokens: Array, *, train: bool = False, axis: str | None = None
    ) -> Any:
        """(image_embeds [n_i, e], text_embeds [n_t, e]) for a loss: rows of length one, float32.

        Plain JAX without checks or `jit`, to be called inside of a compiled step. With `train`
        BatchNorm uses the batch's statistics, and a third value is returned: the new running ones
        as `nnx.split(model, nnx.Param, nnx.BatchStat)[2]` has them; empty for a Vision Transformer.
        `axis` names the devices that share the batch inside `shard_map` or `pmap`.
        """
        statistics: dict[str, Any] = {}
        if train and isinstance(self.visual, ModifiedResNet):
            features, new = self.visual(images, train=True, axis=axis)
            statistics = checkpoint.flatten(new, "visual.")
        else:
            features = image_features(self, images)
        I_e = l2_normalize(at_least_float32(features))
        T_e = l2_normalize(at_least_float32(text_features(self, tokens)))
        return (I_e, T_e, new_statistics(self, statistics)) if train else (I_e, T_e)

    def temperature(self) -> list[nnx.Param]:
        """What a loss takes beside the embeddings: the log temperature and, if any, the bias."""
        return [self.logit_scale, *([self.logit_bias] if self.config.logit_bias else [])]


def create(
    config: ClipConfig,
    key: Array | int = 0,
    *,
    remat: str = "full",
    numerics: Numerics = Numerics(),
    placement: Any = None,
) -> Clip:
    """A model with fresh random weights; blocks as the released code draws its text tower's.

    Args:
      config: its architecture.
      key: of `jax.random.key`, or a seed.
      remat: what the backward pass computes again: "full" (a whole block), "products" (all but the
        products with a kernel), "products_and_attention" (all but these and attention) or "none".
      numerics: dtype and precision.
      placement: a tree like the model, of the shardings for its leaves.

    >>> from jaxclip.config import RELEASED
    >>> jax.eval_shape(lambda key: create(RELEASED["ViT-B/32"], key), jax.random.key(0))
    Clip(ViT-B/32, 151,277,313 parameters, float32)
    """

    def make(key: Array) -> Clip:
        return Clip(config, init=Initialiser(nnx.Rngs(key)), remat=remat, numerics=numerics)

    if not isinstance(config, ClipConfig):
        raise ValueError(
            f"config: expected a ClipConfig, got {short_repr(config)}; jaxclip.config.RELEASED has "
            "those of the released models by name"
        )
    key = jax.random.key(key) if isinstance(key, int | np.integer) else key
    return jax.jit(make, out_shardings=placement)(key)


def abstract(config: ClipConfig, *, remat: str = "full", numerics: Numerics = Numerics()) -> Clip:
    """A model whose leaves are shapes: no weight is drawn, no memory taken, nothing traced."""
    return Clip(config, init=Shapes(), remat=remat, numerics=numerics)
