"""From a name or a path to a model that is ready to use."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import convert, hardware
from jaxclip.config import RELEASED, Activation, ClipConfig
from jaxclip.hardware import cpu, memory
from jaxclip.hub.find import find
from jaxclip.images.preprocess import Preprocess
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Numerics
from jaxclip.tokenizer import check_vocabulary


class Model:
    """A loaded CLIP: `encode_image`, `encode_text` and the logits of every picture with every text.

    With `jit` the functions are compiled once a shape; without it they run op by op.
    """

    def __init__(
        self, module: clip.Clip, *, jit: bool = True, notes: Mapping[str, Any] | None = None
    ) -> None:
        self.module = module
        self.notes = dict(notes or {})  # where the weights came from
        self.config: ClipConfig = module.config
        self._on_cpu = jit and jax.default_backend() == "cpu"
        self._jit = jit
        self._towers = {name: hasattr(module, at) for name, at in parameters.TOWERS.items()}
        self._rows = cpu.CPU_ROWS if self._on_cpu else None
        self._functions: dict[str, Any] = {
            "image": clip.Clip.encode_image,
            "text": clip.Clip.encode_text,
            "both": clip.Clip.__call__,
            "logits": clip.Clip.logits,
        }

    @cached_property
    def _compiled(self) -> dict[str, Any]:
        """The functions as they run; made by the first call, as asking for options takes time."""
        if not self._jit:
            return self._functions
        tower = self.module.visual if self._towers["image"] else self.module.text
        options = cpu.compiler_options(tower.numerics.dtype) if self._on_cpu else None
        return {
            name: jax.jit(function, compiler_options=options)
            for name, function in self._functions.items()
        }

    def encode_image(self, images: np.ndarray | jax.Array) -> jax.Array:
        """images [n, h, w, c], preprocessed -> image_features [n, e], not normalised."""
        return self._in_turn("image", self._images(images))

    def encode_text(self, tokens: np.ndarray | jax.Array) -> jax.Array:
        """tokens [n, l], l up to the context length -> text_features [n, e], not normalised.

        Columns beyond the model's context length are cut when they hold nothing but padding. An id
        outside of the model's vocabulary is a ValueError. Inside `jax.jit` no value can be checked:
        there the features of such a text, or of one that is too long, are NaN.
        """
        return self._in_turn("text", self._tokens(tokens))

    def __call__(
        self, images: np.ndarray | jax.Array, tokens: np.ndarray | jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """-> (logits_per_image [n_i, n_t], logits_per_text [n_t, n_i])."""
        return self._call("both", self._images(images), self._tokens(tokens))

    def logits(
        self, image_embeds: np.ndarray | jax.Array, text_embeds: np.ndarray | jax.Array
    ) -> jax.Array:
        """logits_per_image [n_i, n_t] of embeddings [n_i, e] and [n_t, e], rows of length one.

        One tower is enough: what is compared may have been embedded before.
        """
        width = self.config.embed_dim
        for embeds in (image_embeds, text_embeds):
            if embeds.ndim != 2 or embeds.shape[1] != width:
                raise ValueError(f"expected embeddings [n, {width}], got {embeds.shape}")
        return self._call("logits", jnp.asarray(image_embeds), jnp.asarray(text_embeds))

    def probabilities(self, logits_per_image: np.ndarray | jax.Array) -> jax.Array:
        """How likely each text is, by image: logits [n_i, n_t] -> [n_i, n_t].

        One text of all (softmax); each text on its own (sigmoid) where the model was trained with
        SigLIP's loss, which shows in its config as `logit_bias`.
        """
        sigmoid = self.config.logit_bias
        return clip.probabilities(jnp.asarray(logits_per_image), sigmoid=sigmoid)

    def _call(self, name: str, *rows: jax.Array) -> Any:
        missing = [t for t, there in self._towers.items() if not there and name in (t, "both")]
        if missing:
            raise ValueError(f"this model was loaded without its {missing[0]} tower; load it whole")
        # Inside a caller's jit the caller's compiler options apply.
        inside = any(isinstance(each, jax.core.Tracer) for each in rows)
        return (self._functions if inside else self._compiled)[name](self.module, *rows)

    def _in_turn(self, name: str, rows: jax.Array) -> jax.Array:
        """One tower's features of [n, ...], a few rows after the other where that is faster."""
        if self._rows is None or len(rows) <= self._rows:
            return self._call(name, rows)
        starts = range(0, len(rows), self._rows)
        return jnp.concatenate([self._call(name, rows[i : i + self._rows]) for i in starts])

    def _images(self, images: np.ndarray | jax.Array) -> jax.Array:
        size = self.config.vision.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images {images.shape} came, [n, {size}, {size}, 3] was expected")
        return jnp.asarray(images)

    def _tokens(self, tokens: np.ndarray | jax.Array) -> jax.Array:
        """Checked, and cut to the context length; inside jit a row that fails becomes NaN."""
        text = self.config.text
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"expected tokens [n, l] of whole numbers, got {tokens.shape} {tokens.dtype}; "
                "make them with jaxclip.tokenize"
            )
        kept, cut = tokens[:, : text.context_length], tokens[:, text.context_length :]
        if isinstance(tokens, jax.core.Tracer):  # -1: no id of any vocabulary
            return jnp.where((cut != 0).any(axis=1, keepdims=True), -1, kept.astype(jnp.int32))
        if np.any(np.asarray(cut)):
            raise ValueError(
                f"expected at most {text.context_length} tokens, the model's context length, got "
                "a longer text; shorten it"
            )
        check_vocabulary(kept, text.vocab_size)
        return jnp.asarray(kept)


def available_models() -> list[str]:
    """The nine released models, in the released order; `load` takes each by name.

    >>> available_models()[5]
    'ViT-B/32'
    """
    return list(RELEASED)


def load(
    name_or_path: str | Path | convert.Loaded,
    *,
    jit: bool = True,
    dtype: Any = None,
    cache_dir: str | Path | None = None,
    activation: Activation | None = None,
    heads: tuple[int, int] | None = None,
    image_size: int | None = None,
    precision: str | None = None,
    tower: parameters.Tower | None = None,
    arrange: bool = True,
) -> tuple[Model, Preprocess]:
    """A model and what turns its pictures into pixels.

    Args:
      name_or_path: "emoji" (the embedded model), a name that `available_models` lists, a run
        folder, a Hugging Face folder, or a file: ours, OpenAI's, open_clip's or Hugging Face's.
        A path never uses the network. Or what `convert.load` made of a file, to be loaded in parts.
      jit: compile; False runs op by op, with the same numbers.
      dtype: of activations and matrix products, and of the kernels if narrower than float32, the
        dtype if not given.
      cache_dir: where released models are kept; else JAXCLIP_CACHE or ~/.cache/jaxclip.
      activation: of a file that does not say: "quick_gelu", "gelu" or "gelu_tanh".
      heads: attention heads of the image and the text tower, of a file that does not say them and
        whose shapes are not those of a released model.
      image_size: run at another resolution; the positional embedding is resized as open_clip does
        (`jaxclip.convert.at_size` has Hugging Face's way as well).
      precision: of matrix products, jax's "default", "high" or "highest"; None leaves the global
        setting in force.
      tower: "image" or "text" loads that tower alone, in its share of the memory and time; what
        needs the other one raises ValueError.

    Raises:
      ValueError: nothing is there, or it is not a sound checkpoint of a CLIP model.
      OSError: a released model cannot be fetched.

    >>> model, preprocess = load("emoji")
    >>> model.config.vision.image_size == preprocess.size
    True
    """
    found: Path | None = None
    if isinstance(name_or_path, convert.Loaded):
        loaded = name_or_path
        convert.agree(convert.Given(activation, heads), loaded.config, "what was loaded")
    else:
        found = find(name_or_path, cache_dir)
        loaded = convert.load(found, activation=activation, heads=heads, check_numbers=False)
    if image_size is not None:
        loaded = convert.at_size(loaded, image_size)
    dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
    empty = clip.abstract(loaded.config, remat="none", numerics=Numerics(dtype, precision))
    if dtype.itemsize < 4:
        empty = parameters.with_kernels(empty, dtype)
    flat = loaded.flat
    if tower is not None:
        other: parameters.Tower = "text" if tower == "image" else "image"
        empty = parameters.without_tower(empty, other)
        prefix = f"{parameters.TOWERS[other]}."
        flat = {name: array for name, array in flat.items() if not name.startswith(prefix)}
    empty = hardware.arrange(empty) if arrange else empty
    try:
        module = parameters.from_flat(flat, empty, memory.put)
    except ValueError as error:  # numbers that are not finite
        raise ValueError(f"{found}: {error}" if found else str(error)) from None
    model = Model(module, jit=jit, notes=loaded.notes)
    return model, Preprocess(loaded.config.vision.image_size)
