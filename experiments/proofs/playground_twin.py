"""The page that trains a CLIP in the browser, held against the project's own towers and loss.

Question:  does the hand-written JavaScript of docs/playground/ train the same model?
Command:   python -m experiments.proofs.playground_twin            (needs node)
Result:    three seeds, 100 steps each, the default model: largest difference of a loss printed.

Both languages draw weights and batches from the same seeded generator of whole numbers, so a
difference is rounding or a mistake.
"""

import dataclasses
import functools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.common import run_experiment
from experiments.recipes.playground_drawings import ARTISTS, NAMES, Drawings, read_drawings
from jaxclip.config import MEAN, STD, ClipConfig, TextConfig, VisionConfig

PAGE = Path(__file__).parents[2] / "docs" / "playground"
DEFAULTS: dict[str, Any] = json.loads((PAGE / "defaults.json").read_text(encoding="utf-8"))
STRIDE = 0x6D2B79F5
MASK = 0xFFFFFFFF


class Random:
    """docs/playground/src/random.js again: mulberry32, whole numbers of 32 bits."""

    def __init__(self, seed: int) -> None:
        self.state = seed & MASK

    def many(self, count: int) -> np.ndarray:
        """The next `count` numbers, uint32: each is a hash of how often the state was moved."""
        moved = self.state + STRIDE * np.arange(1, count + 1, dtype=np.uint64)
        z = (moved & MASK).astype(np.uint32)
        self.state = (self.state + STRIDE * count) & MASK
        z = (z ^ (z >> 15)) * (z | np.uint32(1))
        z ^= z + (z ^ (z >> 7)) * (z | np.uint32(61))
        return z ^ (z >> 14)

    def whole(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self.many(1)[0]) * n >> 32

    def normal(self, count: int) -> np.ndarray:
        """Nearly normal numbers, float64: sums of twelve, less six."""
        return self.many(12 * count).reshape(count, 12).astype(np.uint64).sum(1) / 2**32 - 6

    def permutation(self, n: int) -> list[int]:
        """0 to n - 1 in random order."""
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.whole(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


# Data ---------------------------------------------------------------------------------------------


def split_words(caption: str) -> list[str]:
    """A caption's words, in lower case."""
    return re.findall(r"[^\W_]+", caption.lower())


class Batches:
    """docs/playground/src/data.js again: pixels and tokens of one batch after the other."""

    def __init__(self, drawings: Drawings, options: dict[str, Any]) -> None:
        self.drawings, self.options, self.chosen = drawings, options, options["chosen"]
        with_keywords = options["wording"] == "keywords"
        self.captions = [NAMES[name] for name in self.chosen]
        self.keywords = [drawings.keywords[i] if with_keywords else () for i in self.chosen]
        texts = [*self.captions, *(word for words in self.keywords for word in words)]
        words = sorted({word for text in texts for word in split_words(text)})
        self.numbers = {word: i + 1 for i, word in enumerate(words)}
        self.vocabulary = len(words) + 2
        self.context = 2 + 2 * max(len(split_words(text)) for text in texts)
        self.painters, count = len(ARTISTS) - 1, len(self.chosen)
        deal = Random(3 * options["seed"] + 2)
        dealt = options["wording"] == "dealt"
        self.dealt = [
            deal.permutation(count) if dealt else list(range(count)) for _ in range(self.painters)
        ]

    def encode(self, caption: str) -> np.ndarray:
        """Token ids [context]: start, words, the end with the largest id, zeros."""
        ids = [0, *(self.numbers[word] for word in split_words(caption)), self.vocabulary - 1]
        return np.pad(np.array(ids, np.int32), (0, self.context - len(ids)))

    def pixels(self, name: int, artist: int, down: int, right: int) -> np.ndarray:
        """A drawing moved by whole pixels over white, normalised: float32 [32, 32, 3]."""
        drawing = self.drawings.pixels[name, artist]
        most = self.options["shift"]
        wide = np.pad(drawing, ((most, most), (most, most), (0, 0)), constant_values=255)
        moved = wide[most - down :, most - right :][: len(drawing), : len(drawing)]
        return ((moved / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        size, most = self.options["batch"], self.options["shift"]
        random = Random(3 * self.options["seed"] + 1)
        order: list[int] = []
        while True:
            if len(order) < size:
                order = random.permutation(len(self.chosen))
            places, order = order[:size], order[size:]
            images, tokens = [], []
            for place in places:
                artist = random.whole(self.painters)
                name, caption = self.chosen[self.dealt[artist][place]], self.captions[place]
                if self.options["wording"] == "keywords":
                    picked = random.whole(len(self.keywords[place]) + 1)
                    caption += f" {self.keywords[place][picked - 1]}" if picked else ""
                down, right = (random.whole(2 * most + 1) - most for _ in range(2))
                images.append(self.pixels(name, artist, down, right))
                tokens.append(self.encode(caption))
            yield {"image": np.stack(images), "tokens": np.stack(tokens)}


# Model --------------------------------------------------------------------------------------------


def config_of(options: dict[str, Any], batches: Batches) -> ClipConfig:
    """The page's model as the project's config."""
    width, layers, heads = options["width"], options["layers"], options["heads"]
    return ClipConfig(
        VisionConfig(32, options["patch"], width, layers, heads),
        TextConfig(
            options["words"],
            context_length=batches.context,
            vocab_size=batches.vocabulary,
            kind="cbow",
        ),
        options["embedding"],
        activation="quick_gelu",
        logit_bias=options["loss"] == "sigmoid",
    )


def deviation(name: str, shape: tuple[int, ...], layers: int) -> float | None:
    """The standard deviation that a parameter is drawn with; None for zeros and ones."""
    if name.endswith((".bias", ".in_proj_bias", ".scale", "logit_scale", "logit_bias")):
        return None
    if name.endswith("conv1.kernel"):
        return 1 / math.sqrt(3 * math.prod(shape[:-1]))
    if name.endswith(("out_proj.kernel", "mlp.c_proj.kernel")):
        return 1 / math.sqrt(shape[-1]) / math.sqrt(2 * layers)
    if name.endswith("c_fc.kernel"):
        return 1 / math.sqrt(2 * shape[0])
    if name.endswith("token_embedding.embedding"):
        return 0.02
    return 1 / math.sqrt(shape[-1] if name.endswith("_embedding") else shape[0])


def draw_weights(config: ClipConfig, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """{official name: float32} in the order in which the page draws them."""
    from jaxclip import shapes
    from jaxclip.models.clip import INITIAL_LOGIT_BIAS, INITIAL_LOGIT_SCALE

    random, drawn = Random(3 * options["seed"]), {}
    for name, shape in shapes.parameters(config).items():
        std = deviation(name, shape, options["layers"])
        if name == "logit_scale":
            start = math.log(10) if config.logit_bias else INITIAL_LOGIT_SCALE
            value = np.array(math.log(options["scale"]) if options.get("scale") else start)
        elif name == "logit_bias":
            value = np.array(INITIAL_LOGIT_BIAS)
        elif std is None:
            value = np.full(shape, 1.0 if name.endswith(".scale") else 0.0)
        else:
            value = (std * random.normal(math.prod(shape))).reshape(shape)
        drawn[name] = value.astype(np.float32)
    return drawn


def loss_of(options: dict[str, Any]) -> Any:
    """The loss over (image_embeds, text_embeds, logit_scale[, logit_bias])."""
    import jax
    import jax.numpy as jnp

    from jaxclip.losses import contrastive_loss, cross_entropy_loss
    from jaxclip.training.sigmoid import sigmoid_loss

    def one_sided(I_e: jax.Array, T_e: jax.Array, t: jax.Array) -> jax.Array:
        logits = jnp.dot(I_e, T_e.T) * jnp.exp(t)  # [n, n]
        return cross_entropy_loss(logits, jnp.arange(len(I_e)), axis=1)

    losses = {"softmax": contrastive_loss, "sigmoid": sigmoid_loss, "oneSided": one_sided}
    loss = losses[options["loss"]]
    if options["temperature"] == "learned":
        return loss
    return lambda I_e, T_e, t, *bias: loss(I_e, T_e, jax.lax.stop_gradient(t), *bias)


def make_step(options: dict[str, Any]) -> Any:
    """A function of a seed, (first state, compiled step, batches): compiled once for all seeds."""
    import jax

    from jaxclip.models.clip import abstract
    from jaxclip.models.parameters import from_flat, split_statistics
    from jaxclip.training.optimizer import adamw
    from jaxclip.training.state import TrainState
    from jaxclip.training.step import clip_loss_fn, train_step

    drawings = read_drawings()
    config = config_of(options, Batches(drawings, options))
    optimizer = adamw(*(options[name] for name in ("rate", "warmup", "steps", "decay")))
    empty = abstract(config, remat="none")
    graphdef, _, _ = split_statistics(empty)
    loss_fn = clip_loss_fn(graphdef, loss_of(options))
    step = jax.jit(functools.partial(train_step, loss_fn=loss_fn, optimizer=optimizer))

    def start(seed: int) -> tuple[TrainState, Any, Batches]:
        weights = draw_weights(config, options | {"seed": seed})
        _, state = TrainState.create(from_flat(weights, empty), optimizer, jax.random.key(0))
        return state, step, Batches(drawings, options | {"seed": seed})

    return start


def losses_in_python(
    options: dict[str, Any], seeds: Sequence[int], steps: int
) -> dict[int, list[float]]:
    """{seed: the loss before each of `steps` updates}, by the project's towers and optimiser."""
    start, losses = make_step(DEFAULTS | options), {}
    for seed in seeds:
        state, step, batches = start(seed)
        losses[seed] = []
        for _, batch in zip(range(steps), batches, strict=False):
            state, metrics = step(state, batch, state.key)
            losses[seed].append(float(metrics["loss"]))
    return losses


def losses_in_javascript(
    options: dict[str, Any], seeds: Sequence[int], steps: int, *, plain: bool = False
) -> dict[int, list[float]]:
    """The same by the page's code, run by Node; `plain` without WebAssembly.

    ValueError where there is no Node, or it fails.
    """
    node = shutil.which("node")
    if node is None:
        raise ValueError("expected node on the PATH, got none; install Node.js 20 or newer")
    runs = [DEFAULTS | options | {"seed": seed} for seed in seeds]
    command = [node, PAGE / "losses_of.js", json.dumps(runs), str(steps), "plain" * plain]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"expected losses from node, got: {done.stderr.strip()[-500:]}")
    return dict(zip(seeds, json.loads(done.stdout), strict=True))


@dataclasses.dataclass
class Flags:
    """How long, and from which seeds."""

    steps: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)


def main(flags: Flags) -> list[float]:
    """Print and return the largest difference of a loss for every seed."""
    ours = losses_in_python({}, flags.seeds, flags.steps)
    theirs = losses_in_javascript({}, flags.seeds, flags.steps)
    largest = [float(np.abs(np.subtract(ours[s], theirs[s])).max()) for s in flags.seeds]
    for seed, apart in zip(flags.seeds, largest, strict=True):
        ends = f"{ours[seed][0]:.4f} to {ours[seed][-1]:.4f}"
        print(f"seed {seed}: {flags.steps} steps, loss {ends}, at most {apart:.1e} apart")
    return largest


if __name__ == "__main__":
    sys.exit(run_experiment(main, Flags, sys.argv[1:], "playground_twin", __doc__ or ""))
