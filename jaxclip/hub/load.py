"""From a name or a path to a model that is ready to use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import jax.numpy as jnp
import numpy as np

from jaxclip import convert, hardware
from jaxclip.config import RELEASED, Activation, Sides, TowerConfig
from jaxclip.hardware import memory
from jaxclip.hub.find import find
from jaxclip.images.preprocess import Preprocess
from jaxclip.models import clip, encoders, parameters, single
from jaxclip.models.layers import Numerics


def available_models() -> list[str]:
    """The nine released models, in the released order; `load` takes each by name.

    >>> available_models()[5]
    'ViT-B/32'
    """
    return list(RELEASED)


@overload
def load(
    name_or_path: str | Path | convert.Loaded,
    *,
    dtype: Any = None,
    precision: str | None = None,
    image_size: Sides | None = None,
    activation: Activation | None = None,
    heads: tuple[int, int] | None = None,
    tower: None = None,
    cache_dir: str | Path | None = None,
    jit: bool = True,
    arrange: bool = False,
) -> tuple[clip.Clip, Preprocess]: ...


@overload
def load(
    name_or_path: str | Path | convert.Loaded,
    *,
    dtype: Any = None,
    precision: str | None = None,
    image_size: Sides | None = None,
    activation: Activation | None = None,
    heads: tuple[int, int] | None = None,
    tower: parameters.Tower,
    cache_dir: str | Path | None = None,
    jit: bool = True,
    arrange: bool = False,
) -> tuple[Any, Any]: ...


def load(
    name_or_path: str | Path | convert.Loaded,
    *,
    dtype: Any = None,
    precision: str | None = None,
    image_size: Sides | None = None,
    activation: Activation | None = None,
    heads: tuple[int, int] | None = None,
    tower: parameters.Tower | None = None,
    cache_dir: str | Path | None = None,
    jit: bool = True,
    arrange: bool = False,
) -> tuple[Any, Any]:
    """A model, and the function that turns an image into its pixels.

    Args:
      name_or_path: "emoji" (the embedded model), a name that `available_models` lists, a run
        folder, a Hugging Face folder, or a file: ours, OpenAI's, open_clip's or Hugging Face's.
        A path that exists never uses the network. The id of a model on the Hugging Face Hub, as
        "google/siglip2-base-patch16-224", "hf-hub:owner/name" or "owner/name@revision" (extra
        `hub`; what is cached is used without the network). Or what `convert.load` made of a file,
        to be loaded in parts.
      dtype: of activations and matrix products, float32 if not given. Kernels are kept in it too if
        it is narrower.
      precision: of matrix products, jax's "default", "high" or "highest"; None leaves the global
        setting in force.
      image_size: run at another resolution, of one side or of height and width; the positional
        embedding is resized as open_clip does (`jaxclip.convert.at_size` has Hugging Face's way as
        well).
      activation: of a file that does not say: "quick_gelu", "gelu" or "gelu_tanh".
      heads: attention heads of the image and the text tower, of a file that does not say them and
        whose shapes are not those of a released model.
      tower: "image" or "text" loads that tower alone, in its share of the memory and time; what
        needs the other one raises ValueError. Of a file that holds one tower only, such as Stable
        Diffusion's text encoders, the model is a `SingleTower`.
      cache_dir: where released models are kept, else JAXCLIP_CACHE or ~/.cache/jaxclip; those of
        the Hub, else its own cache.
      jit: compile the model's own methods, once per shape; False runs them op by op.
      arrange: make it faster for inference on this machine (`jaxclip.hardware.arrange`). Otherwise
        the model is plain, with the same names and shapes on every platform.

    Returns:
      The model, a Flax NNX module and JAX pytree with `tokenize`, and its `Preprocess`.

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
        convert.require_agreement(convert.Given(activation, heads), loaded.config, "the model")
    else:
        found = find(name_or_path, cache_dir)
        loaded = convert.load(found, activation=activation, heads=heads, check_numbers=False)
    if image_size is not None:
        loaded = convert.at_size(loaded, image_size)
    dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
    flat, empty = _select(loaded, tower, Numerics(dtype, precision))
    if dtype.itemsize < 4:
        empty = parameters.with_kernels(empty, dtype)
    empty = hardware.arrange(empty) if arrange else empty
    try:
        model = parameters.from_flat(flat, empty, memory.put)
    except ValueError as error:  # numbers that are not finite
        raise ValueError(f"{found}: {error}" if found else str(error)) from None
    model.notes = encoders.Notes(loaded.notes)
    if not jit:
        model.jit = False
    if loaded.config.vision is None:  # a text tower alone takes no pictures
        return model, None
    return model, Preprocess.of(loaded.config)


def _select(
    loaded: convert.Loaded, tower: parameters.Tower | None, numerics: Numerics
) -> tuple[Mapping[str, np.ndarray], Any]:
    """(arrays, a model of shapes) of the whole file, or of one tower of it."""
    if tower is not None and tower not in parameters.TOWERS:
        raise ValueError(f"tower: expected image or text, got {tower!r}")
    if isinstance(loaded.config, TowerConfig):
        alone = single.abstract(loaded.config, remat="none", numerics=numerics)
        if tower not in alone.towers:
            raise ValueError(
                f"tower: expected {alone.towers[0]}, the only one in that file, got "
                f"{tower or 'none'}; pass tower={alone.towers[0]!r}"
            )
        return loaded.flat, alone
    empty = clip.abstract(loaded.config, remat="none", numerics=numerics)
    if tower is None:
        return loaded.flat, empty
    other: parameters.Tower = "text" if tower == "image" else "image"
    prefix = f"{parameters.TOWERS[other]}."
    flat = {name: array for name, array in loaded.flat.items() if not name.startswith(prefix)}
    return flat, parameters.without_tower(empty, other)
