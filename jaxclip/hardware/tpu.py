"""Models arranged to train in little memory on a TPU; their speed there was never measured."""

import jax
import jax.numpy as jnp

from jaxclip.hardware import flat
from jaxclip.hardware.attention import FusedAttention
from jaxclip.models.clip import Clip
from jaxclip.models.layers import Taps, attend

Array = jax.Array
GROUP = 2  # heads at a time


class GroupedAttention(FusedAttention):
    """Attention of a few heads at a time, whose weights alone are in memory.

    A TPU keeps them in float32 and their last axis in multiples of 128: 257 keys take 384.
    """

    def mix(self, qkv: Array, mask: Array | None, taps: Taps | None) -> Array:
        n, l, _ = qkv.shape
        if taps is not None or self.heads % GROUP:
            return super().mix(qkv, mask, taps)

        def of_group(part: Array) -> Array:
            return attend(part.reshape(n, l, -1), GROUP, mask, self.numerics)[0]

        groups = self.heads // GROUP
        parts = jnp.moveaxis(qkv.reshape(n, l, 3, groups, -1), 3, 0)  # [groups, n, l, 3, 2k]
        mixed = jax.lax.map(jax.checkpoint(of_group), parts)
        return jnp.moveaxis(mixed, 0, 2).reshape(n, l, -1)


def for_training(model: Clip, remat: str) -> Clip:
    """The same tree in modules that take less memory where `remat` is "full", else the model.

    Its backward pass computes the products of attention once more, a twentieth of a step's.
    """
    if remat != "full":
        return model
    return flat.arrange(model, GroupedAttention, kernel="einsum")
