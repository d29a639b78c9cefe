"""From a name or a path to a model that is ready to use."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import checkpoint
from jaxclip.config import ClipConfig
from jaxclip.models import clip
from jaxclip.models.layers import Numerics
from jaxclip.preprocess import Preprocess

EMBEDDED = "emoji"


class Model:
    """A loaded CLIP: `encode_image`, `encode_text` and the logits of every picture with every text.

    With `jit` the functions are compiled once a shape; without it they run op by op.
    """

    def __init__(self, module: clip.Clip, *, jit: bool = True) -> None:
        self.module = module
        self.config: ClipConfig = module.config
        wrap: Any = jax.jit if jit else lambda function: function
        self._encode_image = wrap(lambda module, images: module.encode_image(images))
        self._encode_text = wrap(lambda module, tokens: module.encode_text(tokens))
        self._logits = wrap(lambda module, images, tokens: module(images, tokens))

    def encode_image(self, images: np.ndarray | jax.Array) -> jax.Array:
        """images [n, h, w, c], preprocessed -> image_features [n, e], not normalised."""
        return self._encode_image(self.module, self._images(images))

    def encode_text(self, tokens: np.ndarray | jax.Array) -> jax.Array:
        """tokens [n, l], l up to the context length -> text_features [n, e], not normalised.

        Columns beyond the model's context length are cut when they hold nothing but padding.
        """
        return self._encode_text(self.module, self._tokens(tokens))

    def __call__(
        self, images: np.ndarray | jax.Array, tokens: np.ndarray | jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """-> (logits_per_image [n_i, n_t], logits_per_text [n_t, n_i])."""
        return self._logits(self.module, self._images(images), self._tokens(tokens))

    def _images(self, images: np.ndarray | jax.Array) -> jax.Array:
        size = self.config.vision.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images {images.shape} came, [n, {size}, {size}, 3] was expected")
        return jnp.asarray(images)

    def _tokens(self, tokens: np.ndarray | jax.Array) -> jax.Array:
        longest = self.config.text.context_length
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"tokens {tokens.shape} {tokens.dtype} came, whole numbers [n, l] expected"
            )
        if np.any(np.asarray(tokens[:, longest:])):
            raise ValueError(f"a text is longer than the model's {longest} tokens; shorten it")
        return jnp.asarray(tokens[:, :longest])


def find(name_or_path: str | Path) -> Path:
    """The weights file that a name or path stands for; ValueError says what would have been one."""
    if str(name_or_path) == EMBEDDED:
        return Path(str(files("jaxclip") / "data_files" / "emoji.safetensors"))
    path = Path(name_or_path)
    if path.is_dir():
        if (path / "model.safetensors").is_file():
            return path / "model.safetensors"
        if (path / "state.safetensors").is_file():
            raise ValueError(
                f"{path} is a run that has not ended; finish it first: "
                f"jaxclip train emoji --out {path} --resume"
            )
        raise ValueError(f"{path} is no run folder: it holds no model.safetensors")
    if not path.is_file():
        raise ValueError(
            f"no model is named {str(name_or_path)!r} and no such file is there; expected "
            f"{EMBEDDED!r}, a run folder or a .safetensors file that jaxclip wrote"
        )
    return path


def load(
    name_or_path: str | Path, *, jit: bool = True, dtype: Any = None
) -> tuple[Model, Preprocess]:
    """A model and what turns its pictures into pixels.

    Args:
      name_or_path: "emoji" (the embedded model), a run folder, or a file that jaxclip wrote.
      jit: compile; False runs op by op, with the same numbers.
      dtype: of activations and matrix products; float32 if not given.

    Raises:
      ValueError: nothing is there, or it is not a checkpoint of this version.

    >>> model, preprocess = load("emoji")
    >>> model.config.vision.image_size == preprocess.size
    True
    """
    flat, config, _ = checkpoint.load(find(name_or_path))
    numerics = Numerics(jnp.float32 if dtype is None else dtype)
    module = clip.from_flat(flat, clip.abstract(config, remat=False, numerics=numerics))
    return Model(module, jit=jit), Preprocess(config.vision.image_size)
