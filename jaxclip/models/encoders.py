"""The base of `Clip` and `SingleTower`: towers that encode, compiled once per shape."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxclip import checkpoint
from jaxclip.model_tokenizer import copy_beside, tokenize_for
from jaxclip.models.inputs import check_images, check_tokens, on_any_mesh
from jaxclip.models.layers import Taps
from jaxclip.models.parameters import TOWERS, Tower, describe, to_flat

Array = jax.Array


class Notes(dict[str, Any]):
    """Where the weights of a loaded model are from; empty in what JAX makes of it.

    Results of `jax.tree.map`, `jax.jit` or `nnx.merge` may hold other numbers.
    """


jax.tree_util.register_pytree_node(Notes, lambda notes: ((), None), lambda aux, _: Notes())


@on_any_mesh
def image_features(model: "Encoders", images: Array) -> Array:
    """images [n, h, w, c] -> image_features [n, e]."""
    return model.visual(images)


@on_any_mesh
def text_features(model: "Encoders", tokens: Array) -> Array:
    """tokens [n, l] -> text_features [n, e]."""
    return model.text(tokens)


@on_any_mesh
def image_states(model: "Encoders", images: Array) -> Array:
    """images [n, h, w, c] -> [n, layers + 1, l, d]: what enters each block, and leaves the last."""
    return _states(model.visual.stages(images)[1])


@on_any_mesh
def text_states(model: "Encoders", tokens: Array) -> Array:
    """tokens [n, l] -> [n, layers + 1, l, d]: what enters each block, and leaves the last."""
    return _states(model.text.stages(tokens)[1])


def _states(seen: Taps) -> Array:
    return jnp.moveaxis(jnp.concatenate([seen["stem"][None], seen["hidden"]]), 1, 0)


_jitted = functools.cache(jax.jit)  # one compiled program per function, model structure and shape


class Encoders(nnx.Module):
    """A model with `visual`, `text` or both: a Flax NNX module and a JAX pytree.

    Its own methods are compiled once per shape, unless `jit` is False. `config` is frozen, and
    `notes` say where the weights are from.
    """

    jit: bool = True
    config: Any
    notes: Notes
    visual: Any  # missing where there is no image tower, as `text` may be
    text: Any

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers that the whole model has."""
        return ("image", "text")

    def encode_image(self, images: np.ndarray | Array) -> Array:
        """Image features, not normalised, as the official code returns them.

        Args:
          images: pixels [n, h, w, c] as `Preprocess` makes them, floating point.

        Returns:
          [n, e], in the model's dtype.

        Raises:
          ValueError: another shape or integers, or a model loaded without its image tower.

        >>> import jaxclip, numpy as np
        >>> model, preprocess = jaxclip.load("emoji")
        >>> size = preprocess.size
        >>> model.encode_image(np.zeros((2, size, size, 3), np.float32)).shape
        (2, 192)
        """
        self._require_tower("image")
        images = check_images(images, self.config.vision.image_sides)
        return self._run(image_features, images)

    def encode_text(self, tokens: np.ndarray | Array) -> Array:
        """Text features, not normalised, as the official code returns them.

        Inside `jax.jit` no value can be checked: there the features of a text with an id outside of
        the vocabulary, or of one that is too long, are NaN.

        Args:
          tokens: ids [n, l] as `tokenize` makes them. Columns beyond the model's context
            length are cut if they hold padding only.

        Returns:
          [n, e], in the model's dtype.

        Raises:
          ValueError: another shape or type, an id outside of the vocabulary, a text that is too
            long, or a model loaded without its text tower.

        >>> import jaxclip
        >>> model, _ = jaxclip.load("emoji")
        >>> model.encode_text(jaxclip.tokenize(["a cat", "a rocket"])).shape
        (2, 192)
        """
        self._require_tower("text")
        return self._run(text_features, check_tokens(tokens, self.config.text))

    def tokenize(self, texts: str | Sequence[str], *, truncate: bool = False) -> np.ndarray:
        """Rows of ids [n, l] for `encode_text`, by the model's own tokenizer: CLIP's by default.

        Args:
          texts: one text, or a list of texts.
          truncate: cut texts that are too long for the model.

        Raises:
          ValueError: a text is too long, the file or package of the tokenizer is missing, or the
            model is an image tower alone.

        >>> import jaxclip
        >>> model, _ = jaxclip.load("emoji")
        >>> model.tokenize(["a cat", "a rocket"]).shape
        (2, 32)
        """
        if self.config.text is None:
            raise ValueError("expected a model with a text tower, got an image tower alone")
        return tokenize_for(self.config.text, texts, truncate=truncate)

    def hidden_states(self, inputs: np.ndarray | Array, *, tower: Tower | None = None) -> Array:
        """What enters each block of a transformer, and what leaves the last one, before its norm.

        Args:
          inputs: images or tokens, as `encode_image` and `encode_text` take them.
          tower: "image" or "text", of a model that has both.

        Returns:
          [layers + 1, n, l, d], in the model's dtype: `[-2]` is the layer before the last, which
          Stable Diffusion XL takes; `model.text.ln_final(states[-1])` is what version 1 takes.

        Raises:
          ValueError: as of `encode_image` and `encode_text`; a tower without transformer blocks.

        >>> import jax, jaxclip
        >>> from jaxclip.config import TextConfig, TowerConfig
        >>> model = jaxclip.SingleTower.from_config(TowerConfig(TextConfig(64, 2, 1, 9, 50), 64))
        >>> model.hidden_states(jax.numpy.array([[48, 7, 49]])).shape
        (3, 1, 3, 64)
        """
        if tower is None:
            held: list[Tower] = [each for each, at in TOWERS.items() if hasattr(self, at)]
            if len(held) != 1:
                raise ValueError("tower: expected image or text for a model of both, got none")
            tower = held[0]
        self._require_tower(tower)
        if not hasattr(getattr(self, TOWERS[tower]), "transformer"):
            raise ValueError(f"expected an {tower} tower of transformer blocks, got another kind")
        if tower == "image":
            images = check_images(inputs, self.config.vision.image_sides)
            states = self._run(image_states, images)
        else:
            states = self._run(text_states, check_tokens(inputs, self.config.text))
        return jnp.moveaxis(states, 0, 1)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the weights and their config as one safetensors file that `jaxclip.load` reads.

        The file appears whole or not at all. A model with a tokenizer of its own has its
        `tokenizer.json` copied beside it.

        Raises:
          ValueError: something is at `path` and `force` is not given, no file can be made there, or
            a tower is missing.

        >>> import jaxclip, pathlib, tempfile
        >>> model, _ = jaxclip.load("emoji")
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.safetensors"
        >>> model.save(path)
        >>> jaxclip.load(path)[0].config == model.config
        True
        """
        self._require_tower(*self.towers)
        path = Path(path)
        if path.exists() and not force:
            raise ValueError(
                f"{path}: expected no such file, got one; pass force=True to replace it"
            )
        notes = {"saved_by": f"jaxclip.{type(self).__name__}.save", "made_from": self.notes}
        if self.config.text is not None:
            copy_beside(self.config.text, path.parent, force=force)
        checkpoint.save(path, to_flat(self), self.config, notes)

    def __deepcopy__(self, memo: Any = None) -> Self:
        copied: Self = super().__deepcopy__(memo)
        copied.notes = Notes(self.notes)
        return copied

    def __repr__(self) -> str:
        """One line: the architecture, how many parameters, the dtype.

        >>> import jaxclip
        >>> jaxclip.load("emoji", tower="text")[0]
        Clip(text tower of ResNet at 64 pixels, 6,348,801 parameters, float32)
        """
        return f"{type(self).__name__}({describe(self)})"

    __str__ = __repr__

    def _run(self, function: Callable[..., Any], *rows: Array) -> Any:
        """`function(self, *rows)`, compiled unless `jit` is False; `hardware` overrides this."""
        return (_jitted(function) if self.jit else function)(self, *rows)

    def _require_tower(self, *towers: Tower) -> None:
        for tower in towers:
            if tower not in self.towers:
                raise ValueError(
                    f"expected a model with an {tower} tower, got a {self.towers[0]} tower alone"
                )
            if not hasattr(self, TOWERS[tower]):
                raise ValueError(f"this model was loaded without its {tower} tower; load it whole")
