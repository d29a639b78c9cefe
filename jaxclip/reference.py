"""CLIP in NumPy: read it beside the paper; in float64 it judges every other implementation.

The paper is Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", arXiv 2103.00020. The file starts with its pseudocode (Figure 3), then come the
two towers that the pseudocode calls, their blocks, what other models do otherwise (open_clip's and
SigLIP's: `Variant`), and the primitives. Run it:

    python -m jaxclip.reference

Parameters are a nested dict with the official keys. The dtype of a result is that of the inputs.
Nothing is written in place, and no branch depends on a value (except in `embed_tokens`, for ids in
a NumPy array), so the functions also run unchanged with `np` replaced by `jax.numpy`, under
`jax.jit` and `jax.grad`. Where a function takes `taps`, a dict, it stores its stages there by name:
that is how `jaxclip.parity` compares two implementations stage by stage.

Letters in shapes: n batch, h w c image, p patches, l m tokens, d width, a heads, k per-head
width, e joint embedding.

Annotated: chapter 5, "Figure 3, line by line"; chapter 9, "The gradient by hand".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Params = dict[str, Any]
Taps = dict[str, Array] | None
Norm = Callable[..., Array] | None


class Variant(NamedTuple):
    """How a tower differs from the released ones, where its parameters do not show it."""

    epsilon: float = 1e-5  # of the layer norms
    pooling: str = "class"  # of pictures: "mean", "attention", "queries"; of texts: "end", "last",
    # "first", "class_token"
    norm_after_pooling: bool = False  # of pictures
    causal: bool = True  # of texts
    end_token: int | None = None  # of texts, for pooling "end"
    pool_heads: int = 1  # of pictures, for pooling "queries"


RELEASED = Variant()


# The pseudocode: Figure 3 -------------------------------------------------------------------------


def figure_3(
    images: Array,  # [n, h, w, c], minibatch of aligned images
    texts: Array,  # [n, l], minibatch of aligned texts
    image_encoder: Callable[[Array], Array],  # ResNet or Vision Transformer
    text_encoder: Callable[[Array], Array],  # CBOW or Text Transformer
    W_i: Array,  # [d_i, e], learned projection of image to embedding
    W_t: Array,  # [d_t, e], learned projection of text to embedding
    t: Array,  # [], learned temperature parameter
) -> Array:
    """The loss of a minibatch of pairs: Figure 3, whole. The next function is its second half.

    The paper keeps the projections W_i and W_t outside the encoders. The released code keeps them
    inside (`visual.proj`, `text_projection`), and so do the towers below.
    """
    # extract feature representations of each modality
    I_f = image_encoder(images)  # [n, d_i]
    T_f = text_encoder(texts)  # [n, d_t]

    # joint multimodal embedding
    I_e = l2_normalize(I_f @ W_i, axis=1)  # [n, e]
    T_e = l2_normalize(T_f @ W_t, axis=1)  # [n, e]

    return contrastive_loss(I_e, T_e, t)


def contrastive_loss(image_embeds: Array, text_embeds: Array, logit_scale: Array | float) -> Array:
    """Symmetric cross-entropy over the pairwise similarities of n aligned pairs (Figure 3).

    Args:
        image_embeds: I_e [n, e], of unit length.
        text_embeds: T_e [n, e], of unit length; row i belongs to image i.
        logit_scale: t, the logarithm of what the similarities are multiplied by.

    Returns:
        The loss, a scalar.

    Example:
        >>> pairs = np.eye(4)
        >>> round(float(contrastive_loss(pairs, pairs, 0.0)), 4)
        0.7437
    """
    I_e, T_e = image_embeds, text_embeds
    n = I_e.shape[0]
    t = np.asarray(logit_scale, dtype=I_e.dtype)

    # scaled pairwise cosine similarities: row i is an image, column j a text
    logits = I_e @ T_e.T * np.exp(t)  # [n, n]

    # symmetric loss function. `axis` is the softmax's: loss_i picks the image of each text, loss_t
    # the text of each image. openai/CLIP ships no loss; after its names the latter, the rows of
    # logits_per_image, is the image's loss (so in Hugging Face's code). The mean is the same.
    labels = np.arange(n)  # [n]
    loss_i = cross_entropy_loss(logits, labels, axis=0)
    loss_t = cross_entropy_loss(logits, labels, axis=1)
    loss = (loss_i + loss_t) / 2
    return loss


def contrastive_loss_gradient(
    image_embeds: Array, text_embeds: Array, logit_scale: Array | float
) -> tuple[Array, Array, Array]:
    """The gradient of `contrastive_loss`, derived by hand.

    Write S = I_e T_e^T [n, n], L = exp(t) S for the logits, P for the softmax of L along axis 0
    (each column sums to one) and Q for the softmax along axis 1 (each row does).

    1. loss_i = mean_j (log sum_i exp L_ij - L_jj), so d loss_i / dL = (P - 1) / n, where 1 is
       the identity; likewise d loss_t / dL = (Q - 1) / n, and the mean of the two is
           G = dloss / dL = (P + Q - 2 * 1) / 2n.
    2. L_ij = exp(t) sum_e I_ie T_je, so
           dloss / dI_e = exp(t) G T_e        and        dloss / dT_e = exp(t) G^T I_e.
    3. dL_ij / dt = L_ij, so dloss / dt = sum_ij G_ij L_ij.

    The embeddings count as free variables: the step through `l2_normalize` is not included.

    Returns:
        dloss / dI_e [n, e], dloss / dT_e [n, e] and dloss / dt, a scalar.
    """
    I_e, T_e = image_embeds, text_embeds
    n = I_e.shape[0]
    t = np.asarray(logit_scale, dtype=I_e.dtype)
    L = I_e @ T_e.T * np.exp(t)  # [n, n]
    P = softmax(L, axis=0)
    Q = softmax(L, axis=1)
    G = (P + Q - 2 * np.eye(n, dtype=I_e.dtype)) / (2 * n)  # [n, n]
    return np.exp(t) * G @ T_e, np.exp(t) * G.T @ I_e, np.sum(G * L)


# The model and its towers -------------------------------------------------------------------------


def clip(
    images: Array,
    tokens: Array,
    params: Params,
    *,
    vision_heads: int,
    text_heads: int,
    activation: str = "quick_gelu",
    vision: Variant = RELEASED,
    text: Variant = RELEASED,
) -> tuple[Array, Array]:
    """Every image against every text: cosine similarities times exp(logit_scale), plus any bias.

    Args:
        images: [n, h, w, c], preprocessed.
        tokens: [m, l], token ids.
        params: the whole model: `visual`, `text`, `logit_scale` and, if any, `logit_bias`.
        vision_heads, text_heads: attention heads; d / 64 in the released models, where d is what
            the attention sees: of a ResNet 32 times the width of its stem.
        activation: a key of `ACTIVATIONS`; a ResNet has none of them.
        vision, text: how the towers differ from the released ones.

    Returns:
        logits_per_image [n, m] and its transpose, logits_per_text [m, n].
    """
    visual, words = params["visual"], params["text"]
    if "transformer" in visual:
        image_features = vision_transformer(
            images, visual, heads=vision_heads, activation=activation, variant=vision
        )
    else:
        image_features = modified_resnet(images, visual, heads=vision_heads)
    if "transformer" in words:
        text_features = text_transformer(
            tokens, words, heads=text_heads, activation=activation, variant=text
        )
    else:
        text_features = continuous_bag_of_words(tokens, words)
    image_embeds = l2_normalize(image_features)  # [n, e]
    text_embeds = l2_normalize(text_features)  # [m, e]
    logits_per_image = logits(image_embeds, text_embeds, params)  # [n, m]
    return logits_per_image, logits_per_image.T


def logits(image_embeds: Array, text_embeds: Array, params: Params) -> Array:
    """Embeddings [n, e] and [m, e], rows of length one -> logits_per_image [n, m].

    The bias is SigLIP's (arXiv 2303.15343, section 3.2); no released model has one.
    """
    logits_per_image = image_embeds @ text_embeds.T * np.exp(params["logit_scale"])  # [n, m]
    if "logit_bias" in params:
        logits_per_image = logits_per_image + params["logit_bias"]
    return logits_per_image


def vision_transformer(
    images: Array,
    params: Params,
    *,
    heads: int,
    activation: str = "quick_gelu",
    variant: Variant = RELEASED,
    taps: Taps = None,
) -> Array:
    """The image tower: Dosovitskiy et al. 2020 (arXiv 2010.11929) with one more layer norm.

    The addition, `ln_pre`, is CLIP's (section 2.4). Of the class token, `ln_pre` and the biases a
    tower has what its parameters have; the released ones have both, and no bias of the patches.

    Args:
        images: [n, h, w, c], preprocessed.
        params: the branch `visual`.
        heads, activation: of a block; `ACTIVATIONS` has the names.
        variant: how the tower differs from the released ones.
        taps: a dict that receives the stages by name, in order.

    Returns:
        image_features [n, e], not normalised.
    """
    taps = {} if taps is None else taps
    kernel = params["conv1"]["kernel"]  # [patch, patch, c, d]
    patch, width = kernel.shape[:2], kernel.shape[-1]

    # a convolution whose stride is its size is one matrix product for each patch
    x = patchify(images, patch) @ kernel.reshape(-1, width)  # [n, p, d]
    x = x + params["conv1"].get("bias", 0)
    taps["conv1"] = x
    if "class_embedding" in params:
        class_token = np.broadcast_to(params["class_embedding"], (x.shape[0], 1, width))
        x = np.concatenate([class_token, x], axis=1)  # [n, 1 + p, d]
    x = x + params["positional_embedding"]
    if "ln_pre" in params:
        x = layer_norm(x, **params["ln_pre"], eps=variant.epsilon)
    taps["stem"] = x
    x = transformer(x, params["transformer"], heads, activation, None, taps, variant.epsilon)
    if variant.pooling == "class":
        x = layer_norm(x[:, 0], **params["ln_post"], eps=variant.epsilon)  # [n, d]
    elif variant.pooling == "queries":
        x = query_pool(x, params["attn_pool"], variant.pool_heads, variant.epsilon)  # [n, e]
        x = layer_norm(x, **params["ln_post"], eps=variant.epsilon)
    else:
        x = pool_patches(x, params, heads, activation, variant, taps)  # [n, d]
    taps["ln_post"] = x
    x = project(x, params.get("proj"))  # [n, e]
    taps["features"] = x
    return x


def modified_resnet(
    images: Array, params: Params, *, heads: int, norm: Norm = None, taps: Taps = None
) -> Array:
    """The other image tower: ResNet-50 (He et al. 2015, arXiv 1512.03385) with three changes.

    Section 2.4: a stem of three convolutions (ResNet-D), strides made by average pooling
    (anti-aliased; Zhang 2019, arXiv 1904.11486) and an attention pool in place of the last mean.

    Args:
        images: [n, h, w, c], preprocessed.
        params: the branch `visual`.
        heads: of the attention pool.
        norm: the normalisation, by default `batch_norm`, whose arguments it takes. One that
            calls `batch_norm_training` and keeps the new statistics makes this a training pass.
        taps: a dict that receives the stages by name, in order.

    Returns:
        image_features [n, e], not normalised.
    """
    taps = {} if taps is None else taps
    norm = batch_norm if norm is None else norm
    x = images
    for i, stride in ((1, 2), (2, 1), (3, 1)):
        x = convolve(x, params[f"conv{i}"]["kernel"], stride)  # [n, h / 2, w / 2, .]
        x = relu(norm(x, **params[f"bn{i}"]))
    x = average_pool(x, 2)  # [n, h / 4, w / 4, d]
    taps["stem"] = x
    for i in range(1, 5):  # [n, h / 4, w / 4, 4d] to [n, h / 32, w / 32, 32d]
        blocks = params[f"layer{i}"]
        for j in range(len(blocks)):
            stride = 2 if i > 1 and j == 0 else 1
            x = bottleneck(x, blocks[str(j)], stride, norm)
        taps[f"layer{i}"] = x
    x = attention_pool(x, params["attnpool"], heads, taps)  # [n, e]
    taps["features"] = x
    return x


def text_transformer(
    tokens: Array,
    params: Params,
    *,
    heads: int,
    activation: str = "quick_gelu",
    variant: Variant = RELEASED,
    taps: Taps = None,
) -> Array:
    """The text tower: a causal transformer read at the end-of-text token (section 2.4).

    Texts may be shorter than the context the model was trained with: attention is causal, so
    what follows the end of a text cannot change its features, and there is no padding mask.
    A variant that is not causal, or reads the last token, needs them whole.

    Args:
        tokens: [n, l] token ids, l at most the context length.
        params: the branch `text`.
        heads, activation, variant, taps: as in `vision_transformer`.

    Returns:
        text_features [n, e], not normalised.
    """
    taps = {} if taps is None else taps
    n = len(tokens)
    x = embed_tokens(tokens, params["token_embedding"]["embedding"])  # [n, l, d]
    if "cls_emb" in params:
        class_token = np.broadcast_to(params["cls_emb"], (n, 1, x.shape[2]))
        x = np.concatenate([x, class_token], axis=1)  # [n, l + 1, d]
    length = x.shape[1]
    x = x + params["positional_embedding"][:length]
    taps["stem"] = x
    causal = np.tri(length, dtype=bool)  # [l, m], true where token l may look at token m <= l
    mask = causal if variant.causal else None
    if "cls_emb" in params:
        visible = visible_keys(tokens)  # [n, 1, 1, m]
        mask = visible if mask is None else mask & visible
    x = transformer(x, params["transformer"], heads, activation, mask, taps, variant.epsilon)
    x = layer_norm(x, **params["ln_final"], eps=variant.epsilon)
    taps["ln_final"] = x
    x = x[np.arange(n), pooled_position(tokens, variant)]  # [n, d]
    x = project(x, params.get("text_projection"))  # [n, e]
    taps["features"] = x
    return x


def continuous_bag_of_words(tokens: Array, params: Params, *, taps: Taps = None) -> Array:
    """The other text encoder that Figure 3 names: a projected mean of word embeddings.

    The paper says "CBOW" and no more. We chose: the mean over the positions from the start token
    up to and including the first end-of-text, then the projection; no positional embedding, no
    layer norm, no bias.

    Args:
        tokens: [n, l] token ids.
        params: the branch `text`, of which `token_embedding` and `text_projection`.
        taps: a dict that receives the stages by name, in order.

    Returns:
        text_features [n, e], not normalised.
    """
    taps = {} if taps is None else taps
    x = embed_tokens(tokens, params["token_embedding"]["embedding"])  # [n, l, d]
    taps["stem"] = x
    in_text = np.arange(tokens.shape[1]) <= end_of_text(tokens)[:, None]  # [n, l]
    x = np.mean(x, axis=1, where=in_text[:, :, None])  # [n, d]
    taps["mean"] = x
    x = project(x, params.get("text_projection"))  # [n, e]
    taps["features"] = x
    return x


def embed_tokens(tokens: Array, embedding: Array) -> Array:
    """A row of the embedding [v, d] for every id: tokens [n, l] -> [n, l, d].

    ValueError for an id outside of the vocabulary: NumPy would count a negative one from the end.
    """
    if isinstance(tokens, Array):  # no jax array, whose values may be unknown
        wrong = tokens[(tokens < 0) | (tokens >= len(embedding))]
        if wrong.size:
            raise ValueError(
                f"token id {wrong[0]}: expected an id from 0 to {len(embedding) - 1}, as the "
                f"vocabulary of the model is {len(embedding)}"
            )
    return np.take(embedding, tokens, axis=0)


def end_of_text(tokens: Array) -> Array:
    """The position [n] of the first end-of-text in tokens [n, l]: its id is the largest of all."""
    return np.argmax(tokens, axis=1)


# Blocks -------------------------------------------------------------------------------------------


def transformer(
    x: Array,
    params: Params,
    heads: int,
    activation: str,
    mask: Array | None,
    taps: dict,
    eps: float = 1e-5,
) -> Array:
    """Residual attention blocks, one after the other: [n, l, d] -> [n, l, d]."""
    blocks = params["resblocks"]
    for i in range(len(blocks)):  # by number: sorted as strings, "10" would come before "2"
        x = residual_attention_block(x, blocks[str(i)], heads, activation, mask, eps)
        taps[f"block.{i}"] = x
    return x


def residual_attention_block(
    x: Array,
    params: Params,
    heads: int,
    activation: str,
    mask: Array | None = None,
    eps: float = 1e-5,
) -> Array:
    """x + attention(norm(x)), then x + mlp(norm(x)); [n, l, d] -> [n, l, d]."""
    x = x + attention(layer_norm(x, **params["ln_1"], eps=eps), params["attn"], heads, mask)
    x = x + mlp(layer_norm(x, **params["ln_2"], eps=eps), params["mlp"], activation)
    return x


def attention(x: Array, params: Params, heads: int, mask: Array | None = None) -> Array:
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2): [n, l, d] -> [n, l, d].

    `mask` [l, m], or [n, 1, l, m], is true where token l may attend to token m. In the packed
    projection the outputs lie as all of q, then all of k, then all of v, each split into heads.
    """
    n, length, width = x.shape
    qkv = x @ params["in_proj_kernel"] + params["in_proj_bias"]  # [n, l, 3d]
    qkv = qkv.reshape(n, length, 3, heads, width // heads)  # [n, l, 3, a, k]
    q, k, v = np.moveaxis(qkv, (2, 3), (0, 2))  # 3 times [n, a, l, k]
    scores = q @ np.swapaxes(k, -1, -2) * (width // heads) ** -0.5  # [n, a, l, m]
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    x = softmax(scores, axis=-1) @ v  # [n, a, l, k]
    x = np.moveaxis(x, 1, 2).reshape(n, length, width)  # [n, l, d]
    return x @ params["out_proj"]["kernel"] + params["out_proj"]["bias"]


def mlp(x: Array, params: Params, activation: str) -> Array:
    """Two linear layers with an activation between: [..., d] -> [..., d].

    Inside they are 4d wide in the released models; the kernels say how wide.
    """
    x = x @ params["c_fc"]["kernel"] + params["c_fc"]["bias"]  # [..., 4d]
    x = ACTIVATIONS[activation](x)
    return x @ params["c_proj"]["kernel"] + params["c_proj"]["bias"]  # [..., d]


def bottleneck(x: Array, params: Params, stride: int, norm: Callable[..., Array]) -> Array:
    """Three convolutions beside a shortcut: [n, h, w, c] -> [n, h // stride, w // stride, 4d].

    No convolution strides: an average pool comes before the last one, and before the shortcut's
    (clip/model.py: Bottleneck).
    """
    y = relu(norm(convolve(x, params["conv1"]["kernel"]), **params["bn1"]))  # [n, h, w, d]
    y = relu(norm(convolve(y, params["conv2"]["kernel"]), **params["bn2"]))
    y = average_pool(y, stride)  # [n, h // stride, w // stride, d]
    y = norm(convolve(y, params["conv3"]["kernel"]), **params["bn3"])
    if "downsample" in params:
        shortcut = params["downsample"]
        x = convolve(average_pool(x, stride), shortcut["0"]["kernel"])
        x = norm(x, **shortcut["1"])
    return relu(x + y)


def attention_pool(x: Array, params: Params, heads: int, taps: dict) -> Array:
    """Attention pooling with one query, the mean over all positions: [n, h, w, d] -> [n, e].

    clip/model.py: AttentionPool2d.
    """
    n, h, w, width = x.shape
    x = x.reshape(n, h * w, width)  # row by row
    x = np.concatenate([np.mean(x, axis=1, keepdims=True), x], axis=1)  # [n, l, d], l = 1 + hw
    x = x + params["positional_embedding"]

    def project(x: Array, name: str) -> Array:
        y = x @ params[name]["kernel"] + params[name]["bias"]  # [n, l, d]
        return np.swapaxes(y.reshape(n, -1, heads, width // heads), 1, 2)  # [n, a, l, k]

    q = project(x[:, :1], "q_proj")  # [n, a, 1, k]
    k, v = project(x, "k_proj"), project(x, "v_proj")
    scores = q @ np.swapaxes(k, -1, -2) * (width // heads) ** -0.5  # [n, a, 1, l]
    x = softmax(scores, axis=-1) @ v  # [n, a, 1, k]
    x = x.reshape(n, width)  # [n, d]
    taps["pooled"] = x
    return x @ params["c_proj"]["kernel"] + params["c_proj"]["bias"]


def patchify(images: Array, patch: int | tuple[int, int]) -> Array:
    """Cut images [n, h, w, c] into patches [i, j, c], row by row: [n, p, i * j * c].

    `patch` is one side of a square, or height and width (i, j).
    The remainder at the right and at the bottom is dropped, as a convolution drops it.
    """
    n, h, w, c = images.shape
    down, across = (patch, patch) if isinstance(patch, int) else patch
    rows, columns = h // down, w // across
    x = images[:, : rows * down, : columns * across]
    x = x.reshape(n, rows, down, columns, across, c)
    x = np.swapaxes(x, 2, 3)  # [n, rows, columns, down, across, c]
    return x.reshape(n, rows * columns, down * across * c)


# Variants: what open_clip's, SigLIP's and other models do otherwise ------------------------------


def pool_patches(
    x: Array, params: Params, heads: int, activation: str, variant: Variant, taps: dict
) -> Array:
    """The mean of the patches, or SigLIP's attention pool: [n, l, d] -> [n, d].

    `ln_post` normalises every position before, or what was pooled.
    """
    if not variant.norm_after_pooling:
        x = layer_norm(x, **params["ln_post"], eps=variant.epsilon)
        taps["last"] = x
    if variant.pooling == "attention":
        x = map_head(x, params["attnpool"], heads, activation, variant.epsilon)
    else:
        x = x[:, 1:] if "class_embedding" in params else x
        x = np.mean(x, axis=1)
    if variant.norm_after_pooling:
        x = layer_norm(x, **params["ln_post"], eps=variant.epsilon)
    return x


def map_head(x: Array, params: Params, heads: int, activation: str, eps: float) -> Array:
    """Attention with one learned query, the probe, then an MLP beside it: [n, l, d] -> [n, d].

    Zhai et al. 2022, arXiv 2106.04560; big_vision/models/vit.py: MAPHead.
    """
    n, length, width = x.shape
    attn, k = params["attn"], width // heads
    W_q, W_k, W_v = np.split(attn["in_proj_kernel"], 3, axis=1)
    b_q, b_k, b_v = np.split(attn["in_proj_bias"], 3)
    q = (params["probe"] @ W_q + b_q).reshape(heads, k)  # [a, k]
    keys = (x @ W_k + b_k).reshape(n, length, heads, k)
    values = (x @ W_v + b_v).reshape(n, length, heads, k)
    weights = softmax(np.einsum("ak,nlak->nal", q, keys) * k**-0.5, axis=-1)
    x = np.einsum("nal,nlak->nak", weights, values).reshape(n, width)  # [n, d]
    x = x @ attn["out_proj"]["kernel"] + attn["out_proj"]["bias"]
    return x + mlp(layer_norm(x, **params["ln"], eps=eps), params["mlp"], activation)


def query_pool(x: Array, params: Params, heads: int, eps: float) -> Array:
    """CoCa's pooler (Yu et al. 2022, arXiv 2205.01917), first query alone: [n, l, d] -> [n, e].

    As open_clip has it: it pools once, with 256 queries, of which the first is for the contrast.
    """
    n, length, _ = x.shape
    attn, e = params["attn"], params["query"].shape[1]
    x = layer_norm(x, **params["ln_k"], eps=eps)
    query = layer_norm(params["query"][0], **params["ln_q"], eps=eps)
    b_q, b_k, b_v = np.split(attn["in_proj_bias"], 3)
    q = (query @ attn["q_proj_kernel"] + b_q).reshape(heads, -1)  # [a, k]
    keys = (x @ attn["k_proj_kernel"] + b_k).reshape(n, length, heads, -1)
    values = (x @ attn["v_proj_kernel"] + b_v).reshape(n, length, heads, -1)
    weights = softmax(np.einsum("ak,nlak->nal", q, keys) * (e // heads) ** -0.5, axis=-1)
    x = np.einsum("nal,nlak->nak", weights, values).reshape(n, e)
    return x @ attn["out_proj"]["kernel"] + attn["out_proj"]["bias"]


def visible_keys(tokens: Array) -> Array:
    """Whether tokens [n, l] and CoCa's class token after them may be seen: [n, 1, 1, l + 1].

    Padding, id 0, is hidden one position further than it lies, as the published CoCa was trained.
    """
    first = np.ones((len(tokens), 1), dtype=bool)
    return np.concatenate([first, tokens != 0], axis=1)[:, None, None]


def pooled_position(tokens: Array, variant: Variant) -> Array:
    """The position [n] of tokens [n, l] whose row becomes the text's features."""
    n, length = tokens.shape
    if variant.pooling == "end":  # not the largest id: the vocabulary goes on behind it
        return np.argmax(tokens == variant.end_token, axis=1)
    fixed = {"first": 0, "last": length - 1, "class_token": length}
    if variant.pooling in fixed:
        return np.full(n, fixed[variant.pooling])
    return end_of_text(tokens)


def project(x: Array, projection: Any) -> Array:
    """To the joint space [n, e]: by a matrix, by one with a bias, or not at all (None)."""
    if projection is None:
        return x
    if isinstance(projection, dict):
        return x @ projection["kernel"] + projection["bias"]
    return x @ projection


# Primitives ---------------------------------------------------------------------------------------


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution without bias: [n, h, w, i], kernel [s, s, i, o] -> [n, rows, columns, o].

    Pads s // 2 rows of zeros on each side and returns ceil(h / stride) rows. "Same" padding
    differs: at a stride of 2 it puts all zeros on one side of an image of even size.
    """
    size = kernel.shape[0]
    side = (size // 2, size // 2)
    x = np.pad(x, ((0, 0), side, side, (0, 0)))
    rows, columns = ((length - size) // stride + 1 for length in x.shape[1:3])
    total = np.zeros((), x.dtype)
    for i in range(size):
        for j in range(size):
            down = slice(i, i + rows * stride, stride)
            along = slice(j, j + columns * stride, stride)
            total = total + x[:, down, along] @ kernel[i, j]
    return total


def average_pool(x: Array, size: int) -> Array:
    """Mean over squares: [n, h, w, c] -> [n, h // size, w // size, c]; the remainder is dropped."""
    n, h, w, c = x.shape
    squares = patchify(x, size).reshape(n, h // size, w // size, size * size, c)
    return np.mean(squares, axis=3)


def batch_norm(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, eps: float = 1e-5
) -> Array:
    """Ioffe and Szegedy 2015 (arXiv 1502.03167) with the running statistics; any [..., c]."""
    return (x - mean) / np.sqrt(var + eps) * scale + bias


def batch_norm_training(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> tuple[Array, Array, Array]:
    """`batch_norm` with the statistics of the batch, and the updated running statistics.

    As in torch: the batch is normalised with the biased variance, the running variance is updated
    with the unbiased one, and `momentum` is the weight of the batch, not that of the past.

    Returns:
        y, shaped as x [n, h, w, c], and the running mean [c] and variance [c] after this batch.
    """
    count = x.size // x.shape[-1]
    m = np.mean(x, axis=(0, 1, 2))  # [c]
    v = np.mean((x - m) ** 2, axis=(0, 1, 2))
    unbiased = v * (count / (count - 1))
    new_mean = (1 - momentum) * mean + momentum * m
    new_var = (1 - momentum) * var + momentum * unbiased
    return batch_norm(x, scale, bias, m, v, eps), new_mean, new_var


def layer_norm(x: Array, scale: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Ba et al. 2016 (arXiv 1607.06450) over the last axis, with the released code's epsilon."""
    mean = np.mean(x, axis=-1, keepdims=True)
    variance = np.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * scale + bias


def l2_normalize(x: Array, axis: int = -1) -> Array:
    """x divided by its Euclidean length; no epsilon, as in the released code."""
    return x / np.sqrt(np.sum(x**2, axis=axis, keepdims=True))


def log_softmax(x: Array, axis: int = -1) -> Array:
    """The logarithm of `softmax`; taking the maximum off first keeps exp from overflowing."""
    x = x - np.max(x, axis=axis, keepdims=True)
    return x - np.log(np.sum(np.exp(x), axis=axis, keepdims=True))


def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) divided by its sum along `axis`; a score of minus infinity gets weight zero."""
    x = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return x / np.sum(x, axis=axis, keepdims=True)


def cross_entropy_loss(logits: Array, labels: Array, axis: int) -> Array:
    """Mean of -log softmax(logits) at the labels; the classes of logits [n, n] lie along `axis`."""
    log_probabilities = log_softmax(logits, axis=axis)
    return -np.mean(np.take_along_axis(log_probabilities, np.expand_dims(labels, axis), axis))


def relu(x: Array) -> Array:
    """x where it is positive, else zero; the activation of the ResNets."""
    return np.maximum(x, 0)


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), the activation of all released models (clip/model.py: QuickGELU)."""
    return x * np.exp(-np.logaddexp(0, -1.702 * x))  # log sigmoid(z) = -log(1 + exp(-z))


def gelu(x: Array) -> Array:
    """x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415)."""
    return x * (1 + erf(x / 2**0.5)) / 2


def gelu_tanh(x: Array) -> Array:
    """The approximation to `gelu` of the same paper's section 2; the default of `jax.nn.gelu`."""
    return x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2


def erf(x: Array) -> Array:
    """The error function, which NumPy lacks, to 1e-15 in float64.

    erf(x) = 2/pi integral_0^inf exp(-s^2) sin(2xs) / s ds. The trapezoidal rule with step pi/12
    turns the integral into

        erf(x) = x/6 + 2/pi sum_{i>=1} exp(-(i pi/12)^2) sin(i pi x/6) / i,

    the Fourier series of a function that equals erf but for its neighbour's tail, erfc(12 - |x|),
    and rounding. Beyond 6, where erf is within 2e-17 of 1, x is clipped; term 25 is below 1e-20.
    """
    x = np.clip(x, -6, 6)
    total = x / 6
    for i in range(1, 25):
        weight = 2 / (np.pi * i) * np.e ** -((i * np.pi / 12) ** 2)
        total = total + weight * np.sin(i * np.pi / 6 * x)
    return total


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu, "gelu_tanh": gelu_tanh}


# A demonstration ----------------------------------------------------------------------------------


def main() -> None:
    """Print each step of Figure 3 for two drawings and their names, by the embedded model.

    Only this function needs more than NumPy: readers for the weights, the drawings and the names.
    """
    import zipfile
    from pathlib import Path

    from jaxclip.checkpoint import load, nest
    from jaxclip.images.open import decode_image
    from jaxclip.images.preprocess import Preprocess
    from jaxclip.tokenizer import tokenize

    folder, names = Path(__file__).parent / "data_files", ("cat face", "fox")
    flat, config, _ = load(folder / "emoji.safetensors")
    params = nest({name: array.astype(np.float64) for name, array in flat.items()})
    with zipfile.ZipFile(folder / "emoji.zip") as archive:
        drawings = [archive.read(f"fluent-emoji-flat/{n.replace(' ', '-')}.webp") for n in names]
    preprocess = Preprocess.of(config)
    images = np.stack([preprocess.safe(decode_image(content)) for content in drawings])
    tokens = tokenize(list(names))

    image_features = modified_resnet(
        images.astype(np.float64), params["visual"], heads=config.vision.heads
    )
    text_features = continuous_bag_of_words(tokens, params["text"])
    I_e, T_e, t = l2_normalize(image_features), l2_normalize(text_features), params["logit_scale"]
    print(f"images {images.shape}, tokens {tokens.shape}: drawings and names of {names}")
    print(f"I_e {I_e.shape}, T_e {T_e.shape}, exp(t) = {np.exp(t):.1f}")
    print(f"logits, a row an image, a column a text:\n{logits(I_e, T_e, params).round(2)}")
    print(f"loss = {contrastive_loss(I_e, T_e, t):.6f}")
    print(f"loss of the wrong pairs = {contrastive_loss(I_e, T_e[::-1], t):.6f}")
    print(f"loss of a model that knows nothing = ln 2 = {np.log(2):.6f}")


if __name__ == "__main__":
    main()
