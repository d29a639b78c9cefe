"""The two text encoders that the pseudocode names: text transformer and continuous bag of words.

Annotated: chapter 4, "The two towers".
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.config import ClipConfig, TextConfig, TowerConfig
from jaxclip.models.layers import (
    Encoder,
    LayerNorm,
    Numerics,
    Taps,
    Transformer,
    make_projection,
    project,
)
from jaxclip.models.starts import Initialiser, starts_as_siglip

Array = jax.Array


class TokenEmbedding(nnx.Module):
    """One row a token of the vocabulary."""

    def __init__(
        self, vocab_size: int, width: int, *, std: float = 0.02, init: Initialiser
    ) -> None:
        self.embedding = init.normal((vocab_size, width), std)

    def __call__(self, tokens: Array) -> Array:
        """tokens [n, l] -> [n, l, d]; NaN for an id outside of the vocabulary.

        `tokenizer.check_vocabulary` refuses such ids where their values are known. Inside jit they
        are not, and JAX would clamp the id to the last row: a wrong answer without a word.
        """
        rows = self.embedding[...].at[tokens]
        return rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def pooled_positions(tokens: Array, t: TextConfig) -> Array:
    """The position [n] of tokens [n, l] whose row stands for the text, as `t.pooling` says."""
    n, l = tokens.shape
    if t.pooling == "largest":
        return tokens.argmax(axis=-1)  # end-of-text has the largest id of CLIP's vocabulary
    if t.end_token is not None:
        return jnp.equal(tokens, t.end_token).argmax(axis=-1)
    return jnp.full((n,), {"first": 0, "last": l - 1, "class_token": l}[t.pooling])


def visible_keys(tokens: Array) -> Array:
    """Whether tokens [n, l] and a class token after them may be attended to: [n, 1, 1, l + 1].

    Padding, id 0, is hidden one position further than it lies, and never the first position: so
    open_clip's CoCa was trained (open_clip/transformer.py: `correct_cls_mask` is off).
    """
    visible = jnp.pad(jnp.not_equal(tokens, 0), ((0, 0), (1, 0)), constant_values=True)
    return visible[:, None, None]


class TextTransformer(Encoder):
    """Transformer, causal in the released models, of which one row is projected."""

    def __init__(
        self,
        config: ClipConfig | TowerConfig,
        *,
        remat: str,
        numerics: Numerics,
        init: Initialiser,
    ) -> None:
        t = config.text
        assert t is not None
        options: dict[str, Any] = {"numerics": numerics, "init": init}
        words, positions = 0.02, 0.01
        if starts_as_siglip(t):
            words = positions = t.width**-0.5
        self.token_embedding = TokenEmbedding(t.vocab_size, t.width, std=words, init=init)
        self.cls_emb = init.normal((t.width,), 0.01) if t.pooling == "class_token" else None
        self.positional_embedding = init.normal((t.positions, t.width), positions)
        self.transformer = Transformer(t, config.activation, remat=remat, **options)
        self.ln_final = LayerNorm(t.width, t.layer_norm_epsilon, init=init)
        self.text_projection = make_projection(t, config.embed_dim, **options)
        self.tower = t
        self.numerics = numerics

    def __call__(self, tokens: Array, *, taps: Taps | None = None) -> Array:
        """tokens [n, l] -> text_features [n, e].

        Any l up to the context length where attention is causal: what follows the end of text
        cannot change the result. Taps: `stem`, `hidden`, `attention`, `pooled` as in
        `vit.VisionTransformer`, and `last` [n, l, d] (after `ln_final`). In them CoCa's class token
        makes l one more.
        """
        x = self.token_embedding(tokens)  # [n, l, d]
        if self.cls_emb is not None:
            last = jnp.broadcast_to(self.cls_emb[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([x, last], axis=1)  # [n, l, d]
        l = x.shape[1]
        stem = (x + self.positional_embedding[:l]).astype(self.numerics.dtype)  # [n, l, d]
        mask = None
        if self.tower.causal:
            # A hidden position gets minus infinity; no row is hidden whole: softmax stays finite.
            mask = jnp.triu(jnp.full((l, l), -jnp.inf), k=1)
        if self.cls_emb is not None:
            hidden = jnp.where(visible_keys(tokens), 0.0, -jnp.inf)
            mask = hidden if mask is None else mask + hidden  # [n, 1, l, m]
        x = self.transformer(stem, mask, taps)
        x = self.ln_final(x)
        end = pooled_positions(tokens, self.tower)  # [n]
        pooled = x[jnp.arange(x.shape[0]), end]  # [n, d]
        if taps is not None:
            taps.update(stem=stem, last=x, pooled=pooled)
        return project(pooled, self.text_projection, self.numerics)  # [n, e]


class ContinuousBagOfWords(Encoder):
    """Mean of the word embeddings up to the end of text, then the projection (Figure 3: "CBOW").

    The paper names this encoder and says no more. Chosen here: the mean runs over the start token,
    the words and the end token; what follows is ignored; no position, no normalisation, no bias.
    """

    def __init__(
        self, config: ClipConfig | TowerConfig, *, numerics: Numerics, init: Initialiser
    ) -> None:
        t = config.text
        assert t is not None
        self.token_embedding = TokenEmbedding(t.vocab_size, t.width, init=init)
        self.text_projection = make_projection(t, config.embed_dim, numerics=numerics, init=init)
        self.numerics = numerics

    def __call__(self, tokens: Array, *, taps: Taps | None = None) -> Array:
        """tokens [n, l] -> text_features [n, e]; tap: `pooled` [n, d]."""
        embedded = self.token_embedding(tokens)  # [n, l, d]
        end = tokens.argmax(axis=-1, keepdims=True)  # [n, 1]
        keep = (jnp.arange(tokens.shape[1]) <= end).astype(embedded.dtype)  # [n, l]
        pooled = (embedded * keep[..., None]).sum(1) / keep.sum(1, keepdims=True)  # [n, d]
        if taps is not None:
            taps["pooled"] = pooled
        return project(pooled, self.text_projection, self.numerics)  # [n, e]


def make_text_tower(config: ClipConfig | TowerConfig, *, remat: str, **options: Any) -> Encoder:
    """The text tower of the config's kind; `options` are `numerics` and `init`."""
    if config.text is not None and config.text.kind == "cbow":
        return ContinuousBagOfWords(config, **options)
    return TextTransformer(config, remat=remat, **options)
