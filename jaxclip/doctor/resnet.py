"""The ResNet tower on knobs: the trunk of `jaxclip/reference.py`, an attention pool of our own."""

from typing import Any

import numpy as np

from jaxclip import reference
from jaxclip.doctor.knobs import Tower
from jaxclip.doctor.towers import Array, Params, place, round_to

# Knobs that decide what leaves the last stage.
TRUNK = ("channels", "patches", "epsilon", "batch_norm", "rounding")


def trunk(images: Array, params: Params, t: Tower) -> Array:
    """images [n, h, w, c] -> the last stage [n, h / 32, w / 32, 32 d]."""
    images = images[..., ::-1] if t.channels == "bgr" else images
    images = np.swapaxes(images, 1, 2) if t.patches == "images" else images

    def norm(x: Array, **params: Any) -> Array:
        if t.batch_norm == "batch":
            y = reference.batch_norm_training(x, **params, eps=t.epsilon)[0]
        elif t.batch_norm == "none":
            y = x * params["scale"] + params["bias"]
        else:
            y = reference.batch_norm(x, **params, eps=t.epsilon)
        return round_to(y, t.rounding)

    taps: dict[str, Array] = {}
    reference.modified_resnet(images, params, heads=1, norm=norm, taps=taps)
    return taps["layer4"]


def pool(x: Array, params: Params, t: Tower) -> Array:
    """Attention pooling: [n, h, w, d] -> [n, e], or [n, d] without the projection."""
    n, h, w, width = x.shape
    if t.patches == "columns":
        x = np.swapaxes(x, 1, 2)
    x = x.reshape(n, h * w, width)
    if t.pooled == "mean":  # no attention at all
        return finish_pool(x.mean(axis=1), params, t)
    x, query = gather_tokens(x, params["positional_embedding"], t)
    named = dict(zip(t.qkv, "qkv", strict=True))  # whose weights each part uses

    def project(x: Array, part: str) -> Array:
        given = params[f"{named[part]}_proj"]
        kernel = given["kernel"].T if t.transposed == "qkv" else given["kernel"]
        y = x @ kernel
        y = round_to(y if "attention" in t.without else y + given["bias"], t.rounding)
        return np.swapaxes(y.reshape(n, -1, t.heads, width // t.heads), 1, 2)  # [n, a, l, k]

    q, k, v = project(query, "q"), project(x, "k"), project(x, "v")
    base = width if t.scaled_by == "width" else width // t.heads
    scores = q @ np.swapaxes(k, -1, -2) * x.dtype.type(base**t.query_power)  # [n, a, 1, l]
    x = np.swapaxes(round_to(reference.softmax(scores), t.rounding) @ v, 1, 2)  # [n, q, a, k]
    x = x.reshape(n, -1, width)
    if t.pooled == "mean of patches" and x.shape[1] > 1:
        x = x[:, 1:]
    return finish_pool(round_to(x.mean(axis=1), t.rounding), params, t)


def gather_tokens(x: Array, positions: Array, t: Tower) -> tuple[Array, Array]:
    """(what is attended to [n, l, d], the queries) for cells [n, h w, d]."""
    placed = place(positions, t.positions)
    mean = x.mean(axis=1, keepdims=True)  # [n, 1, d]
    if t.mean_token == "none":  # the first cell is the query
        x = x + placed[1:]
        return x, x[:, :1]
    if t.mean_token == "none, first positions":
        x = x + placed[:-1]
        return x, x[:, :1]
    if t.mean_token == "none, mean of queries":
        x = x + placed[1:]
        return x, x
    if t.mean_token == "query alone":  # the mean is the query and no key
        return x + placed[1:], mean + placed[:1]
    if t.mean_token == "mean of placed":
        x = x + placed[1:]
        return x, x.mean(axis=1, keepdims=True)
    if t.mean_token == "zero":
        mean = 0 * mean
    if t.mean_token == "last":
        x = np.concatenate([x, mean], axis=1) + placed
        return x, x[:, -1:]
    x = round_to(np.concatenate([mean, x], axis=1) + placed, t.rounding)  # [n, 1 + h w, d]
    if t.pooled in ("mean of queries", "mean of patches"):
        return x, x
    if t.pooled == "last":
        return x, x[:, -1:]
    return x, x[:, :1]


def finish_pool(x: Array, params: Params, t: Tower) -> Array:
    """Pooled rows [n, d] -> features [n, e]."""
    kernel, bias = params["c_proj"]["kernel"], params["c_proj"]["bias"]
    if t.projection == "transposed":
        square = kernel.shape[0] == kernel.shape[1]
        kernel = kernel.T if square else kernel.reshape(kernel.shape[::-1]).T
    if t.projection != "none":
        x = x @ kernel
        x = x if "output" in t.without else x + bias
    x = round_to(x, t.rounding)
    return round_to(reference.l2_normalize(x), t.rounding) if t.normalised else x
