"""Both transformers in NumPy with every step on a knob: the wrong models that `diagnose` tries.

The right setting of all knobs is `jaxclip/reference.py`, which a test holds. Letters in shapes: n
batch, h w c image, p patches, l m tokens, d width, a heads, k per-head width, e embedding.
"""

from collections.abc import Callable, Hashable
from typing import Any

import ml_dtypes
import numpy as np
from scipy import special

from jaxclip import reference
from jaxclip.doctor.knobs import Tower
from jaxclip.doctor.preprocessing import resize_matrix

Array = np.ndarray
Params = dict[str, Any]
ROUNDINGS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
MOST_BYTES = 1 << 30  # of hidden states that are kept

# Knobs that decide each part of a tower, for what is computed once and used by many variants.
STEM = ("channels", "patches", "class_token", "positions", "ln_pre", "epsilon")
BLOCK: tuple[str, ...] = ("activation", "heads", "epsilon", "placement", "qkv", "transposed")
BLOCK += ("query_power", "scaled_by", "mask", "joined", "without", "rounding")


class Memory(dict[Hashable, Any]):
    """What was computed, by the knobs that decide it; full, it keeps nothing more."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def get_or(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of a key, computed at most once while there is room."""
        if key in self:
            return self[key]
        value = make()
        self.bytes += getattr(value, "nbytes", 0)
        if self.bytes < MOST_BYTES:
            self[key] = value
        return value


def chosen(knobs: Tower, names: tuple[str, ...]) -> tuple[Hashable, ...]:
    """The values of some knobs."""
    return tuple(getattr(knobs, name) for name in names)


def round_to(x: Array, rounding: str) -> Array:
    """x as a number format keeps it, in x's own dtype."""
    return x.astype(ROUNDINGS[rounding]).astype(x.dtype) if rounding else x


def round_params(params: Params, rounding: str) -> Params:
    """Every array of a nested dict rounded."""
    if not rounding:
        return params
    return {
        name: round_params(part, rounding) if isinstance(part, dict) else round_to(part, rounding)
        for name, part in params.items()
    }


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {  # reference.py's, some times as fast
    "quick_gelu": lambda x: x * special.expit(x * x.dtype.type(1.702)),
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": reference.gelu_tanh,
    "relu": reference.relu,
}


# Stems --------------------------------------------------------------------------------------------


def regrid(positions: Array, choice: str) -> Array:
    """Positions [1 + p, d] of a square grid, resized or transposed though the size is right."""
    side = round((len(positions) - 1) ** 0.5)
    grid = positions[1:].reshape(side, side, -1)
    if choice == "transposed":
        grid = grid.swapaxes(0, 1)
    else:
        scale = {"stretched": (side + 0.1) / side, "shrunk": side / (side + 0.1)}.get(choice, 1.0)
        centres = (np.arange(side) + 0.5) / scale - 0.5
        if choice == "aligned corners":
            centres = np.arange(side) * (side - 1) / side
        w = resize_matrix(side, centres, "bicubic", -0.75).astype(positions.dtype)
        grid = np.einsum("io,jp,opd->ijd", w, w, grid, optimize=True)
    return np.concatenate([positions[:1], grid.reshape(side * side, -1)])


GRIDS = ("stretched", "shrunk", "aligned corners", "transposed")


def place(positions: Array, choice: str) -> Array:
    """Positional embeddings [l, d] as a mistake would have them."""
    if choice in GRIDS:
        return regrid(positions, choice)
    if choice == "none":
        return np.zeros_like(positions)
    if choice == "one on":  # position 0 gets the row of 1
        return np.roll(positions, -1, axis=0)
    if choice == "one back":
        return np.roll(positions, 1, axis=0)
    if choice == "one on, last repeated":
        return np.concatenate([positions[1:], positions[-1:]])
    if choice == "one back, first repeated":
        return np.concatenate([positions[:1], positions[:-1]])
    if choice == "one back, zero first":
        return np.concatenate([0 * positions[:1], positions[:-1]])
    if choice == "one on, zero last":
        return np.concatenate([positions[1:], 0 * positions[:1]])
    if choice in ("patches one on", "patches one back"):
        rolled = np.roll(positions[1:], -1 if choice == "patches one on" else 1, axis=0)
        return np.concatenate([positions[:1], rolled])
    if choice == "class last":
        return np.concatenate([positions[1:], positions[:1]])
    if choice == "patches only":
        return np.concatenate([0 * positions[:1], positions[1:]])
    if choice == "class only":
        return np.concatenate([positions[:1], 0 * positions[1:]])
    return positions


def patch_images(images: Array, kernel: Array, choice: str) -> Array:
    """images [n, h, w, c], kernel [s, s, c, d] -> [n, p, d], the patches in some order."""
    size, width = kernel.shape[0], kernel.shape[-1]
    if choice in ("images", "inside"):
        kernel = np.swapaxes(kernel, 0, 1)
    if choice == "kernel upside down":
        kernel = kernel[::-1, ::-1]
    flat = kernel.reshape(-1, width)
    if choice == "channels first":  # the patch flattened as c, h, w; the kernel as h, w, c
        n = len(images)
        x = reference.patchify(images, size)
        x = np.moveaxis(x.reshape(n, -1, size * size, 3), 3, 2).reshape(n, -1, 3 * size**2)
        return x @ flat
    x = reference.patchify(images, size) @ flat  # [n, p, d]
    if choice in ("images", "columns"):
        side = images.shape[1] // size
        x = np.swapaxes(x.reshape(len(x), side, side, width), 1, 2).reshape(x.shape)
    return x


def image_stem(images: Array, params: Params, t: Tower) -> Array:
    """images [n, h, w, c] -> the tokens that enter the first block, [n, 1 + p, d]."""
    images = images[..., ::-1] if t.channels == "bgr" else images
    x = patch_images(images, params["conv1"]["kernel"], t.patches)  # [n, p, d]
    x = round_to(x, t.rounding)
    positions = place(params["positional_embedding"], t.positions)
    token = np.broadcast_to(params["class_embedding"], (len(x), 1, x.shape[-1]))
    if t.class_token == "zero":
        token = 0 * token
    if t.class_token == "none":
        positions = positions[1:] if t.positions == "learned" else positions[:-1]
    elif t.class_token == "last":
        x = np.concatenate([x, token], axis=1)
    else:
        x = np.concatenate([token, x], axis=1)  # [n, 1 + p, d]
    x = round_to(x + positions, t.rounding)
    if t.ln_pre:
        x = round_to(reference.layer_norm(x, **params["ln_pre"], eps=t.epsilon), t.rounding)
    return x


def text_stem(tokens: Array, params: Params, t: Tower) -> Array:
    """tokens [n, l] -> [n, l, d]."""
    x = reference.embed_tokens(tokens, params["token_embedding"]["embedding"])
    positions = place(params["positional_embedding"], t.positions)
    return round_to(x + positions[: tokens.shape[1]], t.rounding)


# Blocks -------------------------------------------------------------------------------------------


def attention_mask(length: int, choice: str) -> Array | None:
    """[l, m], true where token l may look at token m; "behind" leaves the first token to itself."""
    if choice == "none":
        return None
    if choice == "behind":
        return np.tri(length, k=-1, dtype=bool) | (np.arange(length**2).reshape(length, -1) == 0)
    if choice == "behind, first sees all":
        mask = np.tri(length, k=-1, dtype=bool)
        mask[0] = True
        return mask
    if choice == "backwards":
        return np.tri(length, dtype=bool).T
    return np.tri(length, k=1 if choice == "ahead" else 0, dtype=bool)


def project_qkv(x: Array, params: Params, t: Tower) -> tuple[Array, Array, Array]:
    """[n, l, d] -> q, k and v, 3 times [n, a, l, k]."""
    n, length, width = x.shape
    kernel, bias = params["in_proj_kernel"], params["in_proj_bias"]
    if t.transposed == "qkv":
        kernel = np.concatenate([part.T for part in np.split(kernel, 3, axis=1)], axis=1)
    packed = x @ kernel  # [n, l, 3d]
    if "attention" not in t.without:
        packed = packed + bias
    packed = round_to(packed, t.rounding)
    if t.qkv == "interleaved":  # q, k, v of the first head, then of the second ...
        split = packed.reshape(n, length, t.heads, 3, width // t.heads)
        q, k, v = np.moveaxis(split, (3, 2), (0, 2))
        return q, k, v
    split = packed.reshape(n, length, 3, t.heads, width // t.heads)  # [n, l, 3, a, k]
    if t.qkv == "heads last":  # each head is spread over the width
        split = np.swapaxes(packed.reshape(n, length, 3, width // t.heads, t.heads), 3, 4)
    order = "qkv" if t.qkv == "heads last" else t.qkv
    parts = dict(zip(order, np.moveaxis(split, (2, 3), (0, 2)), strict=True))
    return parts["q"], parts["k"], parts["v"]


def attention(x: Array, params: Params, t: Tower, mask: Array | None) -> Array:
    """Multi-head self-attention: [n, l, d] -> [n, l, d]."""
    n, length, width = x.shape
    q, k, v = project_qkv(x, params, t)
    base = width if t.scaled_by == "width" else width // t.heads
    scores = q @ np.swapaxes(k, -1, -2) * x.dtype.type(base**t.query_power)  # [n, a, l, m]
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    x = round_to(reference.softmax(scores, axis=-1), t.rounding) @ v  # [n, a, l, k]
    x = (np.moveaxis(x, 1, 2) if t.joined else x).reshape(n, length, width)
    kernel = params["out_proj"]["kernel"]
    x = round_to(x, t.rounding) @ (kernel.T if t.transposed == "attention output" else kernel)
    return round_to(x if "output" in t.without else x + params["out_proj"]["bias"], t.rounding)


def mlp(x: Array, params: Params, t: Tower) -> Array:
    """[n, l, d] -> [n, l, d]."""
    x = x @ params["c_fc"]["kernel"]
    x = round_to(x if "mlp" in t.without else x + params["c_fc"]["bias"], t.rounding)
    x = round_to(ACTIVATIONS[t.activation](x), t.rounding) @ params["c_proj"]["kernel"]
    return round_to(x if "mlp" in t.without else x + params["c_proj"]["bias"], t.rounding)


def block(x: Array, params: Params, t: Tower, mask: Array | None) -> Array:
    """One residual attention block: [n, l, d] -> [n, l, d]."""

    def norm(x: Array, name: str) -> Array:
        scale, bias = params[name]["scale"], params[name]["bias"]
        bias = 0 * bias if "norms" in t.without else bias
        return round_to(reference.layer_norm(x, scale, bias, eps=t.epsilon), t.rounding)

    if t.placement == "post":
        x = norm(x + attention(x, params["attn"], t, mask), "ln_1")
        return norm(x + mlp(x, params["mlp"], t), "ln_2")
    if t.placement == "parallel":
        y = norm(x, "ln_1")
        return x + attention(y, params["attn"], t, mask) + mlp(norm(x, "ln_2"), params["mlp"], t)
    x = round_to(x + attention(norm(x, "ln_1"), params["attn"], t, mask), t.rounding)
    return round_to(x + mlp(norm(x, "ln_2"), params["mlp"], t), t.rounding)


# Ends ---------------------------------------------------------------------------------------------


def pool_image(x: Array, t: Tower) -> Array:
    """[n, l, d] -> [n, d]."""
    if t.pooled == "last":
        return x[:, -1]
    if t.pooled == "mean":
        return x.mean(axis=1)
    if t.pooled == "mean of patches":
        return x[:, :-1].mean(axis=1) if t.class_token == "last" else x[:, 1:].mean(axis=1)
    if t.pooled == "second":
        return x[:, 1]
    return x[:, 0]


def pool_text(x: Array, tokens: Array, t: Tower) -> Array:
    """[n, l, d] -> [n, d]."""
    end, length = reference.end_of_text(tokens), tokens.shape[1]
    rows = np.arange(len(x))
    at = {"first": 0 * end, "last": 0 * end + length - 1, "before": np.maximum(end - 1, 0)}
    at |= {"after": np.minimum(end + 1, length - 1)}
    if t.pooled == "mean":
        return x.mean(axis=1)
    if t.pooled == "mean of text":
        inside = np.arange(length) <= end[:, None]
        return np.mean(x, axis=1, where=inside[:, :, None])
    return x[rows, at.get(t.pooled, end)]


def finish(x: Array, projection: Array, t: Tower) -> Array:
    """Pooled rows [n, d] -> features [n, e]."""
    if t.projection == "transposed":
        square = projection.shape[0] == projection.shape[1]
        x = x @ (projection.T if square else projection.reshape(projection.shape[::-1]).T)
    elif t.projection == "as it is":
        x = x @ projection
    x = round_to(x, t.rounding)
    return round_to(reference.l2_normalize(x), t.rounding) if t.normalised else x
