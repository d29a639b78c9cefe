"""How parameters come to be: drawn as published, or as shapes alone."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.config import TextConfig, VisionConfig

Array = jax.Array
Tower = VisionConfig | TextConfig  # both say the same of their blocks
Start = float | Literal["xavier", "lecun"]  # how a kernel is drawn, see `Initialiser.kernel`


def starts_as_siglip(tower: Tower) -> bool:
    """Whether a new tower is drawn as SigLIP's are (big_vision, models/vit.py) and not as CLIP's.

    The former's image towers have its attention pool, its text towers are not causal.
    """
    return tower.pooling == "attention" or (isinstance(tower, TextConfig) and not tower.causal)


class Initialiser:
    """Makes parameters in float32, drawn with the next key of `rngs` each."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.rngs = rngs

    def normal(self, shape: tuple[int, ...], std: float) -> nnx.Param[Any]:
        """A parameter from N(0, std^2)."""

        def draw(shape: tuple[int, ...], dtype: Any) -> Array:
            return std * jax.random.normal(self.rngs.params(), shape, dtype)

        return self.variable(nnx.Param, shape, draw)

    def kernel(self, shape: tuple[int, ...], start: Start, parts: int = 1) -> nnx.Param[Any]:
        """A kernel [..., i, o] from N(0, start^2), or as Flax's initialiser of that name draws it.

        `parts` kernels side by side are drawn as each alone.
        """
        if start == "xavier":
            return self.uniform(shape, (6 / (shape[-2] + shape[-1] / parts)) ** 0.5)
        if start == "lecun":
            lecun = jax.nn.initializers.lecun_normal()
            return self.variable(nnx.Param, shape, lambda *how: lecun(self.rngs.params(), *how))
        return self.normal(shape, start)

    def uniform(self, shape: tuple[int, ...], bound: float) -> nnx.Param[Any]:
        """A parameter from U(-bound, bound)."""

        def draw(shape: tuple[int, ...], dtype: Any) -> Array:
            return jax.random.uniform(self.rngs.params(), shape, dtype, -bound, bound)

        return self.variable(nnx.Param, shape, draw)

    def constant(self, shape: tuple[int, ...], value: float, kind: Any = nnx.Param) -> Any:
        """A variable that is `value` everywhere."""
        return self.variable(kind, shape, lambda shape, dtype: jnp.full(shape, value, dtype))

    def variable(self, kind: Any, shape: tuple[int, ...], draw: Callable[..., Array]) -> Any:
        return kind(draw(shape, jnp.float32))

    def stack(self, make: Callable[["Initialiser"], Any], layers: int) -> Any:
        """One module whose leaves hold those of `layers` modules, along a leading axis."""
        keys = jax.random.split(self.rngs.params(), layers)
        return jax.vmap(lambda key: make(Initialiser(nnx.Rngs(key))))(keys)


class Shapes(Initialiser):
    """Makes parameters that are shapes: nothing is drawn, traced or kept in memory."""

    def __init__(self) -> None:
        pass

    def variable(self, kind: Any, shape: tuple[int, ...], draw: Callable[..., Array]) -> Any:
        return kind(jax.ShapeDtypeStruct(shape, jnp.float32))

    def stack(self, make: Callable[[Initialiser], Any], layers: int) -> Any:
        def stacked(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((layers, *leaf.shape), leaf.dtype)

        return jax.tree.map(stacked, make(self))
