"""One image tower, trained two ways on the same labelled pictures: from captions, and from labels.

`from_captions` is CLIP as the paper trains it: the pseudocode's loss on pictures and captions made
of class names. `from_labels` is the same tower with a linear head and cross-entropy; the head is
the tower's own last projection, as wide as there are classes. Both sides see the same pictures in
the same order with the same crops, and share the optimiser, its constants and its schedule.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxclip import checkpoint
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.data.emoji.batches import EmojiBatches
from jaxclip.data.emoji.pictures import EmojiPictures
from jaxclip.evaluation.features import map_batches
from jaxclip.models import clip
from jaxclip.models.clip import Clip
from jaxclip.models.parameters import new_statistics
from jaxclip.tokenizer import tokenize
from jaxclip.training import step as steps
from jaxclip.training.optimizer import adamw
from jaxclip.training.pixels import augment_drawings, normalize_image
from jaxclip.training.sharding import data_mesh
from jaxclip.training.state import TrainState

Array = jax.Array
MARGIN = 2  # pixels a side that a training picture may be moved by
CONTEXT = 16  # tokens of a caption, at most
UNUSED = TextConfig(width=1, layers=1, heads=1, context_length=1, vocab_size=1, kind="cbow")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What both sides share.

    pictures_seen: training pictures of the whole run, repeats counted.
    """

    vision: VisionConfig | ResNetConfig
    pictures_seen: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 40
    weight_decay: float = 0.2
    seed: int = 0

    @property
    def steps(self) -> int:
        """Updates of the weights; the rest of less than a batch is dropped."""
        return self.pictures_seen // self.batch_size


def order(n: int, seed: int) -> Iterator[int]:
    """Endless indices 0..n-1, each once an epoch, every epoch in another order."""
    epoch = 0
    while True:
        yield from np.random.default_rng([seed, 0, epoch]).permutation(n)
        epoch += 1


def random_crop(batch: dict[str, Any], key: Array, *, size: int) -> Array:
    """`image` uint8 [n, s, s, 3] moved by up to MARGIN pixels either way -> pixels.

    A random crop of the picture within a black margin; the paper's only augmentation is a crop, too
    (section 2.3).
    """
    images = batch["image"]
    wide = jnp.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * MARGIN + 1)

    def crop(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (size, size, 3))

    return normalize_image({"image": jax.vmap(crop)(wide, corners)}, key)


@dataclasses.dataclass(frozen=True)
class LabelledArrays:
    """Pictures with labels, to train or to test on.

    images: uint8 [n, h, w, 3], of the tower's size; labels: int [n], into `classes`, the names.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    batch_to_pixels: ClassVar[Any] = staticmethod(random_crop)  # runs inside the step

    def batches(self, size: int, seed: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """(inputs, labels [size]) of every step, without end."""
        rows = order(len(self.labels), seed)
        while True:
            chosen = np.fromiter(rows, np.int64, size)
            yield {"image": self.images[chosen]}, self.labels[chosen]


@dataclasses.dataclass(frozen=True)
class DrawnArrays(LabelledArrays):
    """Drawings with transparency, augmented as by `jaxclip train emoji`.

    A batch holds no name twice: `data.emoji.batches`.
    """

    drawings: EmojiPictures
    batch_to_pixels: ClassVar[Any] = staticmethod(augment_drawings)

    def batches(self, size: int, seed: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        batches = EmojiBatches(self.drawings, size, seed)
        for step in itertools.count():
            batch = batches.at(step)
            inputs = {
                "drawings": self.drawings.images[batch.indices],
                "mirrorable": batch.mirrorable,
            }
            yield inputs, self.labels[batch.indices]


def label_loss_fn(graphdef: nnx.GraphDef) -> steps.LossFn:
    """The loss of the image tower alone, as `step.clip_loss_fn` makes it of both.

    Cross-entropy of its outputs [n, classes] with the labels [n], which a batch has as `tokens`.
    """

    def loss_fn(params: Any, stats: Any, batch: steps.Batch, key: Array) -> tuple[Array, Any]:
        model = nnx.merge(graphdef, params, stats)
        if isinstance(model.config.vision, ResNetConfig):
            logits, new = model.visual(batch["image"], train=True)
            stats = new_statistics(model, checkpoint.flatten(new, "visual."))
        else:
            logits = model.visual(batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"])
        return losses.mean(), ({}, stats)

    return loss_fn


def _train(
    config: ClipConfig,
    recipe: Recipe,
    data: LabelledArrays,
    targets: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    make_loss_fn: Callable[[nnx.GraphDef], steps.LossFn],
    progress: Callable[[int, float], None],
) -> Clip:
    """The loop of both sides; `targets` makes what the batch's tokens are of its labels."""
    optimizer = adamw(
        recipe.learning_rate,
        recipe.warmup,
        recipe.steps,
        recipe.weight_decay,
        tower=type(recipe.vision),
    )
    mesh = data_mesh(jax.devices()[:1])
    model = clip.create(config, recipe.seed, remat="none")
    # placed beforehand: what has no place yet would have the step compiled a second time
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    graphdef, state = TrainState.create(model, optimizer, jax.random.key(recipe.seed))
    state = jax.device_put(state, everywhere)
    pixels = partial(data.batch_to_pixels, size=recipe.vision.image_size)
    step = steps.sharded_step(mesh, make_loss_fn(graphdef), optimizer, batch_to_pixels=pixels)
    batches = data.batches(recipe.batch_size, recipe.seed)
    for i, (inputs, labels) in zip(range(recipe.steps), batches, strict=False):
        rng = np.random.default_rng([recipe.seed, 1, i])
        batch = inputs | {"tokens": targets(labels, rng)}
        state, metrics = step(state, batch, jax.random.fold_in(state.key, i))
        loss = float(metrics["loss"])
        if not np.isfinite(loss):
            raise ValueError(f"step {i + 1}: the loss is {loss}; try a lower learning rate")
        progress(i + 1, loss)
    return state.model(graphdef)


def from_captions(
    recipe: Recipe,
    data: LabelledArrays,
    templates: Sequence[str],
    embed_dim: int = 64,
    progress: Callable[[int, float], None] = lambda *_: None,
) -> Clip:
    """A CLIP trained on captions: each picture's class name in a template drawn at random.

    The text tower is a bag of words, as wide as the joint space. Where a batch holds many pictures
    of one class, their captions count as each other's wrong answers: the loss is the paper's,
    unchanged. Its minimum shares the probability among them.
    """
    texts = [[template.format(name) for template in templates] for name in data.classes]
    tokens = np.stack([tokenize(of_class, CONTEXT) for of_class in texts])  # [c, t, l]

    def targets(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return tokens[labels, rng.integers(len(templates), size=len(labels))]

    text = TextConfig(width=embed_dim, context_length=CONTEXT, kind="cbow")
    config = ClipConfig(recipe.vision, text, embed_dim)
    return _train(config, recipe, data, targets, steps.clip_loss_fn, progress)


def from_labels(
    recipe: Recipe, data: LabelledArrays, progress: Callable[[int, float], None] = lambda *_: None
) -> Clip:
    """The tower alone, trained on labels: `encode_image` gives logits [n, classes].

    The text tower that comes with it has one parameter and is not used.
    """
    config = ClipConfig(recipe.vision, UNUSED, len(data.classes))

    def targets(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return labels.astype(np.int32)

    return _train(config, recipe, data, targets, label_loss_fn, progress)


def encode_all(model: Clip, images: np.ndarray, block: int = 500) -> np.ndarray:
    """uint8 images [n, s, s, 3] -> what its last projection gives, [n, e] or [n, classes]."""
    encode = jax.jit(lambda model, images: model.encode_image(pixels(images)))
    return map_batches(partial(encode, model), images, block)


def encode_penultimate(model: Clip, images: np.ndarray, block: int = 500) -> np.ndarray:
    """uint8 images [n, s, s, 3] -> what the last projection sees, [n, d]."""

    def before(model: Clip, images: Array) -> Array:
        return model.visual.stages(pixels(images))[1]["pooled"]

    return map_batches(partial(jax.jit(before), model), images, block)


def pixels(images: Array) -> Array:
    """uint8 images [n, s, s, 3] of the tower's size -> pixels as the towers take them."""
    return normalize_image({"image": images}, jax.random.key(0))
