"""A model as NumPy arrays that can be run wrongly: knobs and inputs in, features out."""

import dataclasses
import functools
import math
from collections.abc import Hashable
from typing import Any

import numpy as np

from jaxclip import checkpoint, reference
from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.doctor import resnet, towers
from jaxclip.doctor.knobs import Tower
from jaxclip.doctor.towers import Array, Memory, Params

SMALL = 5_000_000  # parameters of a tower up to which float64 costs little


@dataclasses.dataclass(frozen=True)
class Features:
    """What a tower computes: the residual stream before and after each block, and the end."""

    hidden: tuple[Array, ...]  # layers + 1 times [n, l, d]; none of a ResNet or a bag of words
    features: Array  # [n, e]

    @property
    def nbytes(self) -> int:
        """Bytes of the features; the hidden states are counted where they are made."""
        return int(self.features.nbytes)


class Network:
    """The weights of a model, and what their variants have computed so far."""

    def __init__(self, flat: dict[str, Array], config: ClipConfig) -> None:
        self.config = config
        self.memory = Memory()
        self.is_resnet = isinstance(config.vision, ResNetConfig)
        self.is_bag = config.text.kind == "cbow"
        self.params: dict[str, Any] = {}
        for tower in ("visual", "text"):
            own = {name: x for name, x in flat.items() if name.startswith(f"{tower}.")}
            size = sum(x.size for name, x in own.items() if "token_embedding" not in name)
            dtype = np.float64 if size <= SMALL else np.float32
            cast = {
                name: np.asarray(x, np.float32 if "token_embedding" in name else dtype)
                for name, x in own.items()
            }
            self.params |= checkpoint.nest(cast)
        self.logit_scale = float(flat["logit_scale"])
        self.logit_bias = float(flat["logit_bias"]) if "logit_bias" in flat else 0.0

    def cost(self, side: str, rows: int) -> float:
        """About how many multiplications a run of one tower takes."""
        vision, text = self.config.vision, self.config.text
        if side == "text":
            return rows * 12.0 * text.layers * text.width**2 * text.context_length
        if isinstance(vision, ResNetConfig):
            return rows * 4e9 * (vision.width / 64) ** 2 * (vision.image_size / 224) ** 2
        return rows * 12.0 * vision.layers * vision.width**2 * vision.tokens

    def rounded(self, side: str, rounding: str) -> Params:
        """The parameters of a tower in a number format."""
        params = self.params["visual" if side == "image" else "text"]
        if not rounding:
            return params
        if side == "text":  # rows of the embedding are rounded where they are used
            rest = {name: part for name, part in params.items() if name != "token_embedding"}
            rest = towers.round_params(rest, rounding)
            return {**rest, "token_embedding": params["token_embedding"]}
        return towers.round_params(params, rounding)

    def run(self, side: str, inputs: Array, t: Tower, key: Hashable) -> Features:
        """A tower on pixels [n, h, w, c] or tokens [n, l]; `key` tells one input from another."""
        with np.errstate(all="ignore"):  # what overflows departs, by its number
            make = self._image if side == "image" else self._text
            return self.memory.get_or((side, t, key), lambda: make(inputs, t, key))

    def _image(self, images: Array, t: Tower, key: Hashable) -> Features:
        params = self.rounded("image", t.rounding)
        if self.is_resnet:
            images = images.astype(params["conv1"]["kernel"].dtype)
            kept = ("trunk", *towers.chosen(t, resnet.TRUNK), key)
            x = self.memory.get_or(kept, lambda: resnet.trunk(images, params, t))
            return Features((), resnet.pool(x, params["attnpool"], t))
        images = towers.round_to(images.astype(params["proj"].dtype), t.rounding)
        stem = ("image", *towers.chosen(t, (*towers.STEM, "rounding")), key)
        x = self.memory.get_or(stem, lambda: towers.image_stem(images, params, t))
        hidden = self._blocks(x, params, t, stem)
        x = towers.pool_image(hidden[-1], t)
        if t.ln_post:
            x = reference.layer_norm(x, **params["ln_post"], eps=t.last_epsilon or t.epsilon)
        return Features(hidden, towers.finish(x, params["proj"], t))

    def _text(self, tokens: Array, t: Tower, key: Hashable) -> Features:
        params = self.rounded("text", t.rounding)
        if self.is_bag:
            return Features((), self._bag(tokens, params, t))
        stem = ("text", *towers.chosen(t, (*towers.STEM, "rounding")), key)
        x = self.memory.get_or(stem, lambda: towers.text_stem(tokens, params, t))
        hidden = self._blocks(x.astype(params["text_projection"].dtype), params, t, stem)
        x = hidden[-1]
        if t.ln_post:  # on all tokens: a mean over them is another one after it than before
            x = reference.layer_norm(x, **params["ln_final"], eps=t.last_epsilon or t.epsilon)
        x = towers.pool_text(x, tokens, t)
        return Features(hidden, towers.finish(x, params["text_projection"], t))

    def _blocks(self, x: Array, params: Params, t: Tower, stem: Hashable) -> tuple[Array, ...]:
        mask = towers.attention_mask(x.shape[1], t.mask)
        blocks = params["transformer"]["resblocks"]
        knobs = towers.chosen(t, towers.BLOCK)
        hidden = [x]
        for depth, number in enumerate(t.order):
            kept = ("block", stem, knobs, t.order[: depth + 1])
            step = functools.partial(towers.block, hidden[-1], blocks[str(number)], t, mask)
            hidden.append(self.memory.get_or(kept, step))
        return tuple(hidden)

    def _bag(self, tokens: Array, params: Params, t: Tower) -> Array:
        x = reference.embed_tokens(tokens, params["token_embedding"]["embedding"])
        x = x.astype(params["text_projection"].dtype)
        end = reference.end_of_text(tokens) - (t.pooled == "before")
        inside = np.arange(tokens.shape[1]) <= end[:, None]
        x = x.mean(axis=1) if t.pooled == "mean" else np.mean(x, axis=1, where=inside[:, :, None])
        return towers.finish(x, params["text_projection"], t)

    def logits(self, image_features: Array, text_features: Array, knobs: Any) -> Array:
        """logits_per_image [n, m] of features [n, e] and [m, e]."""
        with np.errstate(all="ignore"):
            return self._logits(image_features, text_features, knobs)

    def _logits(self, image_features: Array, text_features: Array, knobs: Any) -> Array:
        I_e, T_e = image_features.astype(np.float64), text_features.astype(np.float64)
        if knobs.normalised:
            I_e, T_e = reference.l2_normalize(I_e), reference.l2_normalize(T_e)
        I_e, T_e = (towers.round_to(x, knobs.rounding) for x in (I_e, T_e))
        found = towers.round_to(I_e @ T_e.T, knobs.rounding) * self.factor(knobs)
        found = found + self.logit_bias if knobs.bias else found
        if knobs.softmax != "none":
            found = reference.softmax(found, axis=1 if knobs.softmax == "texts" else 0)
        return found.T if knobs.transposed else found

    def factor(self, knobs: Any) -> float:
        """What the cosines are multiplied by."""
        t = self.logit_scale
        factors = {
            "exponential": math.exp(min(t, 700)),
            "as it is": t,
            "none": 1.0,
            "inverse": math.exp(-t),
            "twice": math.exp(min(math.exp(min(t, 6)), 700)),
            "clipped": knobs.clip,
        }
        return factors[knobs.scale]
