"""One tower alone, as Stable Diffusion's text encoders are: features and all hidden states."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxclip.config import TowerConfig, short_repr
from jaxclip.models.encoders import Encoders, Notes
from jaxclip.models.layers import (
    Numerics,
)
from jaxclip.models.parameters import Tower
from jaxclip.models.starts import Initialiser, Shapes
from jaxclip.models.text import make_text_tower
from jaxclip.models.vit import VisionTransformer

Array = jax.Array


class SingleTower(Encoders):
    """`visual` or `text` of a `TowerConfig`, with the names of `Clip`'s; it has no temperature."""

    def __init__(
        self,
        config: TowerConfig,
        *,
        init: Initialiser,
        remat: str = "full",
        numerics: Numerics = Numerics(),
    ) -> None:
        options: dict[str, Any] = {"numerics": numerics, "init": init}
        if config.vision is not None:
            self.visual = VisionTransformer(config, remat=remat, **options)
        else:
            self.text = make_text_tower(config, remat=remat, **options)
        self.config = config
        self.notes = nnx.data(Notes())

    @property
    def towers(self) -> tuple[Tower, ...]:
        return ("text",) if self.config.vision is None else ("image",)

    @classmethod
    def from_config(cls, config: TowerConfig, key: Array | int = 0) -> "SingleTower":
        """A tower with fresh random weights, drawn as `Clip`'s are."""
        if not isinstance(config, TowerConfig):
            raise ValueError(f"config: expected a TowerConfig, got {short_repr(config)}")
        key = jax.random.key(key) if isinstance(key, int | np.integer) else key
        return jax.jit(lambda key: cls(config, init=Initialiser(nnx.Rngs(key))))(key)


def abstract(
    config: TowerConfig, *, remat: str = "full", numerics: Numerics = Numerics()
) -> SingleTower:
    """A tower whose leaves are shapes: no weight is drawn, no memory taken, nothing traced."""
    return SingleTower(config, init=Shapes(), remat=remat, numerics=numerics)
