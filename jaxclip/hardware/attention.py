"""Attention by fused kernels, which hold no [n, a, l, l] array, and which kernel a chip gets.

The definition is the einsum of `models/layers.py`: every kernel here equals it (tests/hardware),
and it is what runs wherever nothing else was measured.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxclip.models.layers import Attention, Taps

Array = jax.Array
Kernel = Literal["einsum", "xla", "cudnn", "pallas"]
KEPT = "fused attention"  # names what a backward kernel takes from its forward kernel
FUSED_DTYPES = (jnp.bfloat16, jnp.float16)  # what the kernels of GPUs take
EVEN = 2  # cuDNN takes an even number of tokens,
CUDNN_STEP, CUDNN_MOST = 8, 128  # and heads of a multiple of 8 channels, at most 128

# (chip, tokens): the kernels that were measured there, the fastest first. What was not measured is
# not here; `python -m experiments.bench gpu` makes rows. A chip's name is a word of its
# `device_kind`. bfloat16, heads of 64 channels; batch x heads 128 x 16 at 257 tokens, 1,024 x 8
# (causal) at 77, 1,024 x 12 at 50, 512 x 12 at 197 and 48 x 16 at 577.
#
# H100 80GB (2026-11-26, jax 0.11.2): cuDNN in whole training steps of ViT-L/14 and ViT-B/32, 25 of
# 184 ms. The einsum's step did not fit, or took 442 ms with every block computed again.
# H200 (2026-11-27, jax 0.11.2, docs/gpu.json): each kernel alone, ms forward and backward. In whole
# steps Pallas took 154.0 ms for cuDNN's 156.7 (ViT-L/14) and 114.4 for 121.3 (ViT-B/32). At 50, 77
# and 257 tokens Pallas was measured before its kernels read one array of query, key and value.
MEASURED: dict[tuple[str, int], tuple[Kernel, ...]] = {
    ("H100", 50): ("cudnn",),
    ("H100", 77): ("cudnn",),
    ("H100", 257): ("cudnn",),
    ("H200", 50): ("pallas", "cudnn", "einsum", "xla"),  # 0.388, 0.945, 0.960, 1.129
    ("H200", 77): ("pallas", "cudnn", "einsum", "xla"),  # 0.549, 0.902, 1.483, 1.773
    ("H200", 197): ("pallas", "cudnn", "einsum"),  # 1.402, 2.178, 4.279
    ("H200", 257): ("pallas", "cudnn", "einsum", "xla"),  # 0.769, 1.008, 2.451, 3.101
    ("H200", 577): ("pallas", "cudnn", "einsum"),  # 0.942, 0.988, 3.613
}


def choose(
    device_kind: str, tokens: int, dtype: Any, *, head: int, training_devices: int | None
) -> Kernel:
    """The fastest kernel that was measured there and can run, or "einsum".

    Args:
      device_kind: of a `jax.Device`, such as "NVIDIA H100 80GB HBM3".
      tokens: the sequence's length.
      dtype: of queries, keys and values.
      head: the channels of a head.
      training_devices: that share a training step; None for inference.

    >>> choose("NVIDIA H200", 257, jnp.bfloat16, head=64, training_devices=1)
    'pallas'
    >>> choose("NVIDIA H200", 257, jnp.bfloat16, head=64, training_devices=8)
    'cudnn'
    >>> choose("NVIDIA H200", 257, jnp.float32, head=64, training_devices=1)
    'einsum'
    """
    if dtype not in FUSED_DTYPES:
        return "einsum"
    measured = (
        kernels
        for (chip, length), kernels in MEASURED.items()
        if length == tokens and re.search(rf"\b{chip}\b", device_kind)  # a GH200 is no H200
    )
    can_run = (k for k in next(measured, ()) if _can_run(k, dtype, head, training_devices))
    return next(can_run, "einsum")


def _can_run(kernel: Kernel, dtype: Any, head: int, training_devices: int | None) -> bool:
    """Whether "auto" may take a kernel that was measured.

    On several devices each would gather the others' rows for Pallas; in inference it was not
    measured.
    """
    if kernel == "cudnn":
        return head % CUDNN_STEP == 0 and head <= CUDNN_MOST
    if kernel != "pallas":
        return True
    if training_devices != 1:
        return False
    try:
        require_kernel(kernel, dtype, [head])
    except ValueError:  # these heads, or this jax
        return False
    return True


def padded_length(tokens: int, kernel: Kernel) -> int:
    """The sequence length that a kernel is given for so many tokens."""
    return tokens if kernel in ("einsum", "pallas") else -(-tokens // EVEN) * EVEN


def require_kernel(kernel: str, dtype: Any, heads: Iterable[int]) -> None:
    """ValueError unless it is "auto" or a kernel that takes that dtype and those heads.

    Args:
      heads: the channels of a head in each transformer.
    """
    known = ("auto", *get_args(Kernel))
    if kernel not in known:
        raise ValueError(f"attention: expected {', '.join(known)}, got {kernel!r}")
    if kernel == "cudnn" and dtype not in FUSED_DTYPES:
        raise ValueError(f"attention: expected bfloat16 for cudnn, got {jnp.dtype(dtype).name}")
    if kernel == "pallas":
        for width in heads:
            _pallas().require_head(width, dtype)


def _pallas() -> Any:
    """The module of the Pallas kernels; loading it takes time that no other kernel needs.

    Raises:
      ValueError: this jax has no Pallas for Triton, which jax 0.11 has deprecated.
    """
    try:
        from jaxclip.hardware import pallas_attention
    except ImportError:
        raise ValueError(
            f"attention: expected a jax that has Pallas for Triton, got jax {jax.__version__}; "
            "choose another kernel"
        ) from None
    return pallas_attention


@dataclasses.dataclass(frozen=True)
class Sequences:
    """How the rows of a matrix [n * l, d] are tokens of n sequences of l tokens each."""

    count: int
    length: int
    """l, padding included."""
    true_length: int
    """Tokens that are not padding; they are the first ones."""
    causal: bool
    kernel: Kernel


def run_kernel(query: Array, key: Array, value: Array, rows: Sequences) -> Array:
    """softmax(query key / sqrt(k)) value, each [n, l, a, k] -> [n, l, a, k], by "cudnn" or "xla".

    No token sees padding. What a token of padding gets is finite and means nothing.
    """
    lengths = None
    if rows.true_length < rows.length and not rows.causal:  # a causal mask hides what follows
        lengths = jnp.full((rows.count,), rows.true_length, jnp.int32)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=rows.causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=rows.kernel,  # type: ignore[arg-type]
    )


def run_packed_kernel(qkv: Array, bias: Array, rows: Sequences) -> Array:
    """The same of [query; key; value] [n, l, 3, a, k] -> [n, l, a, k], by "pallas".

    Args:
      qkv: `bias` [3 a k] is in it already, under `stop_gradient`.
      bias: for its gradient, which the kernels sum.

    Raises:
      ValueError: there is padding.
    """
    if rows.true_length < rows.length:
        raise ValueError(
            f"attention: expected no padding for pallas, got {rows.true_length} tokens of "
            f"{rows.length}; choose another kernel"
        )
    mixed: Array = _pallas().attend(qkv, bias, causal=rows.causal, name=KEPT)
    return mixed


class FusedAttention(Attention):
    """`Attention` by a fused kernel, of tokens as one matrix; `FlatTransformer` calls it."""

    def __call__(self, x: Array, mask: Any, taps: Taps | None = None) -> Array:
        """x [n l, d], mask `Sequences` -> [n l, d]; tap `attention` as of `Attention`."""
        rows: Sequences = mask
        n, l, a = rows.count, rows.length, self.heads
        if rows.kernel == "einsum" or taps is not None:
            qkv = self.numerics.dot(x, self.in_proj_kernel, self.in_proj_bias)  # [n l, 3d]
            mixed = self.mix(qkv.reshape(n, l, -1), _mask(rows), taps)
        if rows.kernel == "pallas":
            # The bias's gradient arrives through the kernels. One by way of the product would be a
            # second one, for which XLA would read the gradient of qkv once more.
            bias = self.in_proj_bias[...]
            fixed = nnx.Param(jax.lax.stop_gradient(bias))
            qkv = self.numerics.dot(x, self.in_proj_kernel, fixed)  # [n l, 3d]
            mixed = run_packed_kernel(qkv.reshape(n, l, 3, a, -1), bias, rows)
        elif rows.kernel != "einsum":
            query, key, value = (y.reshape(n, l, a, -1) for y in self._projections(x))
            mixed = run_kernel(query, key, value, rows)
        mixed = checkpoint_name(mixed.reshape(n * l, -1), "attention")
        return self.out_proj(mixed)

    def _projections(self, x: Array) -> list[Array]:
        """Query, key and value [n l, d], by a product each.

        cuDNN takes each as an array of its own: out of one product XLA would copy them, and
        their gradients back into one.
        """
        kernels = jnp.split(self.in_proj_kernel[...], 3, axis=1)
        biases = jnp.split(self.in_proj_bias[...], 3)
        both = zip(kernels, biases, strict=True)
        return [self.numerics.dot(x, nnx.Param(k), nnx.Param(b)) for k, b in both]


def _mask(rows: Sequences) -> Array | None:
    """The additive mask of the einsum; None where no key is hidden."""
    if rows.causal:
        return jnp.triu(jnp.full((rows.length, rows.length), -jnp.inf), k=1)
    if rows.true_length == rows.length:
        return None
    return jnp.where(jnp.arange(rows.length) < rows.true_length, 0.0, -jnp.inf)
