"""Where in a picture a text is seen, and what a transformer's attention reaches: maps over a grid.

`relevance_map` is Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) of the cosine s of a picture
and a text: of a grid x [rows, columns, d], position (i, j) gets relu(sum_d a_d x_ijd), where a_d is
the mean of ds/dx_ijd over all positions.

`attention_rollout` follows Abnar and Zuidema 2020 (arXiv 2005.00928): each block mixes positions by
its attention, the mean of its heads, and by the shortcut, half and half; all blocks multiplied.

Both take a plain model (`hardware.plain`) and change nothing in it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxclip.config import VisionConfig
from jaxclip.losses import l2_normalize
from jaxclip.models.clip import Clip
from jaxclip.models.layers import at_least_float32, project
from jaxclip.models.resnet import ModifiedResNet

Array = jax.Array
STAGES = ("layer1", "layer2", "layer3", "layer4")
LEAST_ROWS = 4  # of the grid of a ResNet: 224 pixels leave 7 rows at layer4, 64 pixels only 2


def relevance_map(model: Clip, images: Array, text_embeds: Array) -> Array:
    """How much each position speaks for a text: [n, rows, columns], 0 or more, not normalised.

    Args:
      model: plain, with its image tower.
      images: [n, h, w, c], as `encode_image` takes them.
      text_embeds: [n, e], one text a picture, rows of length one.
    """
    x, remaining = split_tower(model, images)

    def cosines(x: Array) -> Array:
        embeds = l2_normalize(at_least_float32(remaining(x)))
        return (embeds * text_embeds).sum()  # no picture affects another's cosine

    gradients = at_least_float32(jax.grad(cosines)(x))
    x, gradients = (_as_grid(model, each) for each in (x, gradients))  # [n, rows, columns, d]
    weights = gradients.mean((1, 2), keepdims=True)  # [n, 1, 1, d]
    return jax.nn.relu((at_least_float32(x) * weights).sum(-1))


def split_tower(model: Clip, images: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The activations that relevance is of, and the function from them to the image features.

    Of a ResNet: the output of its last stage with LEAST_ROWS rows or more, [n, rows, columns, d].
    Of a transformer, [n, l, d]: what enters the last block where the class token is pooled, as no
    other position of its output is read; else what leaves it.
    """
    visual = model.visual
    _, seen = visual.stages(images)
    if isinstance(visual, ModifiedResNet):
        fine = [i for i, name in enumerate(STAGES) if seen[name].shape[1] >= LEAST_ROWS]
        last = fine[-1] if fine else 0

        def remaining_stages(x: Array) -> Array:
            for name in STAGES[last + 1 :]:
                x, _ = visual.stage(name, x, train=False, axis=None)
            return visual.attnpool(x)

        return seen[STAGES[last]], remaining_stages
    states = jnp.concatenate([seen["stem"][None], seen["hidden"]])  # [layers + 1, n, l, d]
    block = jax.tree.map(lambda stacked: stacked[-1], visual.transformer.resblocks)
    by_class = visual.tower.pooling == "class"

    def last_block(x: Array) -> Array:
        x = block(x, None) if by_class else x
        return project(visual.pool(x), visual.proj, visual.numerics)

    return states[-2 if by_class else -1], last_block


def attention_rollout(model: Clip, images: Array) -> Array:
    """images [n, h, w, c] -> weights [n, rows, columns] of a transformer; each map sums to 1.

    What the class token reaches where it is pooled; the mean of all positions elsewhere.

    Raises:
      ValueError: the image tower is a ResNet.
    """
    if isinstance(model.visual, ModifiedResNet):
        raise ValueError("expected an image tower of transformer blocks, got a ResNet")
    weights = model.visual.stages(images)[1]["attention"].mean(2)  # [layers, n, l, m]
    shortcut = jnp.eye(weights.shape[-1])
    reached = jnp.broadcast_to(shortcut, weights.shape[1:])  # [n, l, m]
    for mixed in (weights + shortcut) / 2:
        reached = mixed @ reached
    by_class = model.visual.tower.pooling == "class"
    row = reached[:, 0] if by_class else reached.mean(1)  # [n, m]
    grid = _as_grid(model, row[..., None])[..., 0]
    return grid / grid.sum((1, 2), keepdims=True)


def _as_grid(model: Clip, x: Array) -> Array:
    """[n, l, d] without the class token, or a grid already -> [n, rows, columns, d]."""
    if x.ndim == 4:
        return x
    vision = model.config.vision
    assert isinstance(vision, VisionConfig)
    return x[:, int(vision.class_token) :].reshape(len(x), *vision.grid, -1)
