"""Augmentation for drawings, in JAX: move, turn, scale, mirror, background, colour.

Runs inside the training step, on the device, from an explicit key. The same key gives the same
pictures, so a resumed run equals an uninterrupted one.

Annotated: chapter 10, "Training, and the similarity matrix".
"""

import jax
import jax.numpy as jnp

Array = jax.Array
SCALE = (0.7, 1.1)  # side of the drawing in sides of the picture
STRETCH = 0.12  # log of the greatest change of width against height
TURN = 0.2  # greatest rotation, radians
PLAIN_BACKGROUND = 0.8  # share of pictures that stay on white
GREY = 0.05  # share of pictures without colour


def warp(key: Array, image: Array, size: int, mirror: Array) -> Array:
    """One picture [h, w, c], turned, scaled, moved, mirrored if `mirror` -> [size, size, c].

    Zero outside of the drawing. Bilinear, without averaging when it shrinks.
    """
    h = image.shape[0]
    turn, stretch, scale, shift = jax.random.split(key, 4)
    side = jax.random.uniform(scale, minval=SCALE[0], maxval=SCALE[1])
    ratio = jnp.exp(jax.random.uniform(stretch, minval=-STRETCH, maxval=STRETCH))
    angle = jax.random.uniform(turn, minval=-TURN, maxval=TURN)
    room = jnp.maximum(1 - side, 0.1) / 2
    centre = 0.5 + jax.random.uniform(shift, (2,), minval=-room, maxval=room)
    # For each pixel of the result, the coordinates in the drawing that it shows.
    grid = (jnp.arange(size) + 0.5) / size
    y, x = grid[:, None] - centre[0], grid[None, :] - centre[1]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    v = (cos * y - sin * x) / (side * ratio) + 0.5
    u = (sin * y + cos * x) / side * jnp.where(mirror, -1, 1) + 0.5
    return sample_bilinear(image, v * h - 0.5, u * h - 0.5)


def sample_bilinear(image: Array, y: Array, x: Array) -> Array:
    """image [h, w, c] read at y, x [s, t] (in pixels) -> [s, t, c]; zero outside."""
    h, w, c = image.shape
    flat = jnp.pad(image, ((1, 2), (1, 2), (0, 0))).reshape(-1, c)
    y, x = jnp.clip(y, -1, h) + 1, jnp.clip(x, -1, w) + 1
    top, left = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    b, a = (y - top)[..., None], (x - left)[..., None]
    at = top * (w + 3) + left
    above = flat[at] * (1 - a) + flat[at + 1] * a
    below = flat[at + w + 3] * (1 - a) + flat[at + w + 4] * a
    return above * (1 - b) + below * b


def recolour(key: Array, image: Array) -> Array:
    """One picture [h, w, 3] in 0..1: hue, saturation, contrast and brightness changed a little."""
    hue, saturation, contrast, brightness, grey = jax.random.split(key, 5)
    weights = jnp.array([0.299, 0.587, 0.114])
    luma = (image @ weights)[..., None]
    colourful = jax.random.uniform(saturation, minval=0.6, maxval=1.4)
    colourful = jnp.where(jax.random.bernoulli(grey, GREY), 0.0, colourful)
    image = luma + colourful * (image - luma) @ hue_rotation(0.15 * jax.random.normal(hue))
    gain = jax.random.uniform(contrast, minval=0.8, maxval=1.2)
    image = 0.5 + gain * (image - 0.5) + jax.random.uniform(brightness, minval=-0.1, maxval=0.1)
    return jnp.clip(image, 0, 1)


def hue_rotation(angle: Array) -> Array:
    """The [3, 3] matrix that rotates colours about the grey axis by `angle`."""
    grey = jnp.full((3, 3), 1 / 3)
    cross = jnp.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / jnp.sqrt(3)
    return grey + jnp.cos(angle) * (jnp.eye(3) - grey) + jnp.sin(angle) * cross


def augment_one(key: Array, drawing: Array, size: int, mirrorable: Array) -> Array:
    """uint8 [h, w, 4] -> float32 [size, size, 3] in 0..1."""
    mirror, move, plain, colour, background = jax.random.split(key, 5)
    image = drawing.astype(jnp.float32) / 255
    opacity = image[..., 3:]
    premultiplied = jnp.concatenate([image[..., :3] * opacity, opacity], axis=-1)
    flipped = mirrorable & jax.random.bernoulli(mirror)
    placed = warp(move, premultiplied, size, flipped)
    paper = jax.random.uniform(background, (3,))
    paper = jnp.where(jax.random.bernoulli(plain, PLAIN_BACKGROUND), 1.0, paper)
    image = placed[..., :3] + (1 - placed[..., 3:]) * paper
    return recolour(colour, image)


def augment(key: Array, drawings: Array, size: int, mirrorable: Array) -> Array:
    """uint8 [n, h, w, 4], mirrorable bool [n] -> float32 [n, size, size, 3] in 0..1."""
    keys = jax.random.split(key, drawings.shape[0])
    return jax.vmap(augment_one, in_axes=(0, 0, None, 0))(keys, drawings, size, mirrorable)
