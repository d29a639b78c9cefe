"""The whole model: two towers and a temperature (`clip/model.py: CLIP`)."""

import math
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip import checkpoint
from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.losses import l2_normalize
from jaxclip.models.layers import Initialiser, Numerics, Shapes
from jaxclip.models.parameters import Statistics
from jaxclip.models.resnet import ModifiedResNet
from jaxclip.models.text import ContinuousBagOfWords, TextTransformer
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


class Clip(nnx.Module):
    """Image tower, text tower and the log temperature; a pytree that goes straight into jax.jit."""

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
        self.text = (
            ContinuousBagOfWords(config, **towers)
            if config.text.kind == "cbow"
            else TextTransformer(config, remat=remat, **towers)
        )
        scale = math.log(10) if config.logit_bias else INITIAL_LOGIT_SCALE
        self.logit_scale = init.constant((), scale)
        if config.logit_bias:  # SigLIP (arXiv 2303.15343), section 3.2; not in the paper
            self.logit_bias = init.constant((), INITIAL_LOGIT_BIAS)
        self.config = config

    def encode_image(self, images: Array) -> Array:
        """images [n, h, w, c] -> image_features [n, e], not normalised."""
        return self.visual(images)

    def encode_text(self, tokens: Array) -> Array:
        """tokens [n, l] -> text_features [n, e], not normalised."""
        return self.text(tokens)

    @overload
    def embed(
        self, images: Array, tokens: Array, *, train: Literal[False] = False
    ) -> tuple[Array, Array]: ...

    @overload
    def embed(
        self, images: Array, tokens: Array, *, train: Literal[True], axis: str | None = None
    ) -> tuple[Array, Array, Statistics]: ...

    def embed(
        self, images: Array, tokens: Array, *, train: bool = False, axis: str | None = None
    ) -> Any:
        """(image_embeds [n_i, e], text_embeds [n_t, e]), each row of length one, float32.

        With `train` BatchNorm uses the batch's statistics, and a third value comes: the new running
        ones by name, for `with_statistics`. A Vision Transformer has none, so it is empty. `axis`
        names the devices that share the batch inside `shard_map` or `pmap`.
        """
        statistics: Statistics = {}
        if train and isinstance(self.visual, ModifiedResNet):
            image_features, new = self.visual(images, train=True, axis=axis)
            statistics = checkpoint.flatten(new, "visual.")
        else:
            image_features = self.encode_image(images)
        text_features = self.encode_text(tokens)
        wide = jnp.promote_types(image_features.dtype, jnp.float32)
        I_e = l2_normalize(image_features.astype(wide))
        T_e = l2_normalize(text_features.astype(wide))
        return (I_e, T_e, statistics) if train else (I_e, T_e)

    def temperature(self) -> list[nnx.Param]:
        """What a loss takes beside the embeddings: the log temperature and, if any, the bias."""
        return [self.logit_scale, *([self.logit_bias] if self.config.logit_bias else [])]

    def __call__(self, images: Array, tokens: Array) -> tuple[Array, Array]:
        """images [n_i, h, w, c], tokens [n_t, l] -> (logits_per_image [n_i, n_t], transposed)."""
        logits_per_image = self.logits(*self.embed(images, tokens))
        return logits_per_image, logits_per_image.T

    def logits(self, image_embeds: Array, text_embeds: Array) -> Array:
        """Embeddings [n_i, e] and [n_t, e], rows of length one -> logits_per_image [n_i, n_t]."""
        tower = self.visual if hasattr(self, "visual") else self.text
        temperature = (parameter[...] for parameter in self.temperature())
        precision = tower.numerics.precision
        return logits(image_embeds, text_embeds, *temperature, precision=precision)


def create(
    config: ClipConfig,
    seed: int = 0,
    *,
    remat: str = "full",
    numerics: Numerics = Numerics(),
    placement: Any = None,
) -> Clip:
    """A model with fresh random weights; blocks as the released code draws its text tower's.

    `placement` is a tree like the model, of the shardings that its leaves shall have.
    """

    def make(key: Array) -> Clip:
        return Clip(config, init=Initialiser(nnx.Rngs(key)), remat=remat, numerics=numerics)

    return jax.jit(make, out_shardings=placement)(jax.random.key(seed))


def abstract(config: ClipConfig, *, remat: str = "full", numerics: Numerics = Numerics()) -> Clip:
    """A model whose leaves are shapes: no weight is drawn, no memory taken, nothing traced."""
    return Clip(config, init=Shapes(), remat=remat, numerics=numerics)
