"""Augmentation of drawings towards photographs, in JAX: paint, ground, perspective, framing.

What is drawn in black is painted in a random colour, or from one to another; many drawings stand
on coloured or uneven ground. Some that are drawn in colour become drawings in black first, so that
a name that only colour pictures have is learnt as a shape too. Half of all are changed MILD as
much: with strong changes alone a small model learns several times as slowly. Runs inside the
training step, from an explicit key.
"""

import jax
import jax.numpy as jnp

from jaxclip.data.emoji.augment import recolour, sample_bilinear

Array = jax.Array
SCALE = (0.5, 1.1)  # side of the drawing in sides of the picture
STRETCH = 0.2  # log of the greatest change of width against height
TURN = 0.25  # greatest rotation, radians
PERSPECTIVE = 0.2  # greatest change of scale from the centre to an edge
MILD = 0.4  # of the changes above, for half of the pictures
WHITE = (
    0.8,
    0.35,
)  # share of pictures whose ground is white: of mildly and of strongly changed ones
PLAIN = 0.5  # of other grounds: one colour
BLACK = 0.25  # share of black drawings that stay black if their ground is white
TWO_COLOURS = 0.4  # share of painted drawings that go from one colour to another
CONTRAST = 0.3  # least difference of luminance between a painted drawing and its ground
CELLS = 4  # a side of the grid of colours that uneven ground is interpolated from
INK = 0.25  # share of drawings in colour that become drawings in black
LEVEL = 0.25  # greatest distance of the luminance where ink begins from the drawing's mean
EDGE = 16.0  # how abruptly it begins there
GAIN = 4.0  # of the differences between pixels that are drawn as outlines
NOISE = 0.03  # greatest standard deviation of the noise of a pixel
LUMA = (0.299, 0.587, 0.114)


def place(key: Array, image: Array, size: int, mirror: Array, much: Array | float = 1) -> Array:
    """One picture [h, w, c] as seen from a random place, mirrored if `mirror` -> [size, size, c].

    `much`, 0 to 1, is the share of the greatest change. Zero outside of the drawing. Bilinear,
    without averaging when it shrinks.
    """
    h = image.shape[0]
    turn, stretch, scale, shift, tilt = jax.random.split(key, 5)
    side = jax.random.uniform(scale, minval=1 - much * (1 - SCALE[0]), maxval=SCALE[1])
    ratio = jnp.exp(much * jax.random.uniform(stretch, minval=-STRETCH, maxval=STRETCH))
    angle = much * jax.random.uniform(turn, minval=-TURN, maxval=TURN)
    room = jnp.maximum(1 - side, 0.1) / 2
    centre = 0.5 + jax.random.uniform(shift, (2,), minval=-room, maxval=room)
    most = 2 * PERSPECTIVE * much
    tilts = jax.random.uniform(tilt, (2,), minval=-most, maxval=most)
    # For each pixel of the result, the coordinates in the drawing that it shows.
    grid = (jnp.arange(size) + 0.5) / size
    y, x = (grid[:, None] - centre[0]) / side, (grid[None, :] - centre[1]) / side
    distance = jnp.maximum(1 + tilts[0] * y + tilts[1] * x, 0.3)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    v = (cos * y - sin * x) / (ratio * distance) + 0.5
    u = (sin * y + cos * x) / distance * jnp.where(mirror, -1, 1) + 0.5
    return sample_bilinear(image, v * h - 0.5, u * h - 0.5)


def ground(key: Array, size: int, white_share: Array | float) -> tuple[Array, Array]:
    """(a random ground [size, size, 3], its mean colour [3]): white, of one colour or uneven."""
    white, plain, colour, cells, strength = jax.random.split(key, 5)
    base = jax.random.uniform(colour, (3,))
    base = jnp.where(jax.random.bernoulli(white, white_share), 1.0, base)
    uneven = ~jax.random.bernoulli(plain, PLAIN) & (base.min() < 1)
    amplitude = jnp.where(uneven, jax.random.uniform(strength, minval=0.2, maxval=1.0), 0.0)
    grid = jax.random.uniform(cells, (CELLS, CELLS, 3)) - 0.5
    rows = _interpolation(size)  # two products instead of a gather
    smooth = jnp.einsum("yi,xj,ijc->yxc", rows, rows, grid)
    return jnp.clip(base + amplitude * smooth, 0, 1), base


def _interpolation(size: int) -> Array:
    """[size, CELLS], rows sum to one: linear between the cells of a grid."""
    at = jnp.linspace(0, CELLS - 1, size)[:, None]
    return jnp.maximum(1 - jnp.abs(at - jnp.arange(CELLS)[None, :]), 0)


def paint(key: Array, size: int, on: Array) -> Array:
    """A colour for each pixel [size, size, 3] that stands out from the colour `on` [3]."""
    pair, both, black, axis = jax.random.split(key, 4)
    weights = jnp.array(LUMA)
    colours = jax.random.uniform(pair, (2, 3))
    difference = (colours - on) @ weights
    farther = jnp.where(on @ weights > 0.5, 0.0, 1.0)
    lacking = jnp.clip((CONTRAST - jnp.abs(difference)) / CONTRAST, 0, 1)[:, None]
    colours = colours + lacking * (farther - colours)
    stays = jax.random.bernoulli(black, BLACK) & (on.min() >= 1)
    colours = jnp.where(stays, 0.0, colours)
    way = jax.random.uniform(axis, (2,), minval=-1, maxval=1)
    grid = (jnp.arange(size) + 0.5) / size - 0.5
    along = jnp.clip(0.5 + way[0] * grid[:, None] + way[1] * grid[None, :], 0, 1)
    along = jnp.where(jax.random.bernoulli(both, TWO_COLOURS), along, 0.0)[..., None]
    return colours[0] + along * (colours[1] - colours[0])


def ink(key: Array, colours: Array, opacity: Array) -> Array:
    """What a drawing in black keeps of one in colour: opacity [h, w, 1].

    Its darker parts, its brighter parts or its outlines, a third of the cases each.

    Args:
      colours: [h, w, 3], premultiplied by opacity.
      opacity: [h, w, 1]
    """
    kind, level = jax.random.split(key)
    luma = (colours @ jnp.array(LUMA))[..., None]
    mean = luma.sum() / jnp.maximum(opacity.sum(), 1)
    luma = luma / jnp.maximum(opacity, 1e-3)
    beyond = jax.random.uniform(level, maxval=LEVEL)  # more than half of a drawing is ink
    darker = opacity * jax.nn.sigmoid(EDGE * (mean + beyond - luma))
    brighter = opacity * jax.nn.sigmoid(EDGE * (luma - mean + beyond))
    image = jnp.concatenate([colours, opacity], axis=-1)
    padded = jnp.pad(image, ((0, 1), (0, 1), (0, 0)))
    down, right = padded[1:, :-1] - image, padded[:-1, 1:] - image
    steps = jnp.maximum(jnp.abs(down), jnp.abs(right)).max(axis=-1, keepdims=True)
    outlines = jnp.minimum(GAIN * steps, 1)
    return jnp.stack([darker, brighter, outlines])[jax.random.randint(kind, (), 0, 3)]


def paint_one(key: Array, drawing: Array, black: Array, size: int, mirrorable: Array) -> Array:
    """uint8 [h, w, 4] -> float32 [size, size, 3] in 0..1; painted if it is drawn in `black`."""
    keys = jax.random.split(key, 10)
    mirror, move, under, colour, light, noise, level, strength, inks, how = keys
    mild = jax.random.bernoulli(strength)
    image = drawing.astype(jnp.float32) / 255
    opacity = image[..., 3:]
    colours = image[..., :3] * opacity
    inked = ~black & jax.random.bernoulli(inks, INK)
    opacity = jnp.where(inked, ink(how, colours, opacity), opacity)
    black = black | inked
    premultiplied = jnp.concatenate([colours, opacity], axis=-1)
    flipped = mirrorable & jax.random.bernoulli(mirror)
    placed = place(move, premultiplied, size, flipped, jnp.where(mild, MILD, 1.0))
    behind, on = ground(under, size, jnp.where(mild, *WHITE))
    visible = placed[..., 3:]
    drawn = jnp.where(black, visible * paint(colour, size, on), placed[..., :3])
    image = recolour(light, drawn + (1 - visible) * behind)
    grain = jax.random.uniform(level, maxval=NOISE) * jax.random.normal(noise, image.shape)
    return jnp.clip(image + grain, 0, 1)


def paint_drawings(
    key: Array, drawings: Array, black: Array, size: int, mirrorable: Array
) -> Array:
    """uint8 [n, h, w, 4], black and mirrorable bool [n] -> float32 [n, size, size, 3] in 0..1."""
    keys = jax.random.split(key, drawings.shape[0])
    axes = (0, 0, 0, None, 0)
    return jax.vmap(paint_one, in_axes=axes)(keys, drawings, black, size, mirrorable)
