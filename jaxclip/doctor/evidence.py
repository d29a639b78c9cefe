"""Their arrays beside ours: read and checked, and cut into sides that are judged one by one."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxclip.config import ClipConfig
from jaxclip.doctor import preprocessing
from jaxclip.doctor.knobs import Logits, Pixels, Tower, Walk, Words, turn
from jaxclip.doctor.network import Network
from jaxclip.doctor.variants import Variant, fitted_scale

Array = np.ndarray
Rows = tuple[int, ...] | None  # some, or all
Predict = Callable[[Walk, Rows], list[Array]]
SEARCH_ROWS = {"image": 2, "text": 3}  # pictures or texts that the search runs
PADDED = ("last", "mean", "after")  # pooling that reads what follows the end


@dataclasses.dataclass(frozen=True)
class Side:
    """Some of their arrays, and what ours would be for any walk."""

    name: str
    stages: tuple[str, ...]  # names of the arrays, in the order in which they are computed
    theirs: tuple[Array, ...]
    knobs: tuple[str, ...]  # the stages of a walk that may be wrong here
    predict: Predict
    few: int = 0  # rows that a search takes; 0: all
    exact: bool = False  # tokens: no rounding
    cost: float = 0.0  # multiplications of one prediction in the search
    more: tuple[Variant, ...] = ()  # made from these arrays, beside those of the table


def take(array: Array, rows: Rows) -> Array:
    """Some rows of an array, or all."""
    return array if rows is None else array[list(rows)]


def _hidden(given: Mapping[str, Array], side: str) -> tuple[list[str], list[Array]]:
    stack = given.get(f"{side}_hidden")
    if stack is None:
        return [], []
    return [f"{side}_hidden[{i}]" for i in range(len(stack))], list(stack)


class Evidence:
    """A probe, what another program made of it, and a model that can be run wrongly."""

    def __init__(
        self, probe: Mapping[str, Array], theirs: Mapping[str, Array], network: Network
    ) -> None:
        self.network = network
        self.config: ClipConfig = network.config
        self.theirs = theirs
        self.texts = [str(text) for text in probe["texts"]]
        numbers = sorted(int(k.split("_")[1]) for k in probe if k.startswith("picture_"))
        self.pictures = [np.asarray(probe[f"picture_{i}"]) for i in numbers]
        self.inputs = {
            "image": np.asarray(probe["pixels"]).transpose(0, 2, 3, 1),  # [n, h, w, c]
            "text": np.asarray(probe["tokens"]),
        }

    # What is computed ------------------------------------------------------------------------

    def pixels(self, knobs: Pixels) -> Array:
        """Pixels [n, size, size, 3] of the pictures."""

        def make() -> Array:
            size = self.config.vision.image_sides[0]  # square: `right_walk` refuses others
            return np.stack([preprocessing.make_pixels(p, size, knobs) for p in self.pictures])

        found: Array = self.network.memory.get_or(knobs, make)
        return found

    def tokens(self, knobs: Words) -> Array:
        """Tokens [m, l] of the texts."""
        return preprocessing.make_tokens(self.texts, self.config.text.context_length, knobs)

    def tower(self, side: str, walk: Walk, rows: Rows, source: str) -> Any:
        """`Features` of one tower; `source` is "probe", "made" or "theirs"."""
        knobs: Tower = walk[side]
        if source == "made":
            made = walk["pixels"] if side == "image" else walk["tokens"]
            inputs = self.pixels(made) if side == "image" else self.tokens(made)
            key: Any = made
        else:
            given = self._their_inputs(side) if source == "theirs" else self.inputs[side]
            inputs, key = given, source
        inputs = take(inputs, rows)
        if side == "text":
            inputs = self._cut(inputs, knobs)
        return self.network.run(side, inputs, knobs, (key, rows, inputs.shape))

    def _their_inputs(self, side: str) -> Array:
        return self.theirs["pixels"] if side == "image" else self.theirs["tokens"]

    def _cut(self, tokens: Array, knobs: Tower) -> Array:
        """Tokens without the columns that cannot matter, and no more than there are positions."""
        tokens = tokens[:, : self.config.text.context_length]
        causal = knobs.mask in ("causal", "behind", "ahead")
        if "text_hidden" in self.theirs or not causal or knobs.pooled in PADDED:
            return tokens
        return tokens[:, : int(tokens.argmax(axis=1).max()) + 3]

    # The sides -------------------------------------------------------------------------------

    def input_sides(self) -> list[Side]:
        """Their preprocessing and their tokens."""
        sides = []
        if "pixels" in self.theirs and self.pictures:
            sides.append(
                Side(
                    "pixels",
                    ("pixels",),
                    (self.theirs["pixels"],),
                    ("pixels",),
                    lambda walk, rows: [take(self.pixels(walk["pixels"]), rows)],
                )
            )
        if "tokens" in self.theirs and any(self.texts):
            sides.append(
                Side(
                    "tokens",
                    ("tokens",),
                    (self.theirs["tokens"],),
                    ("tokens",),
                    lambda walk, rows: [take(self.tokens(walk["tokens"]), rows)],
                    exact=True,
                )
            )
        return sides

    def tower_side(self, side: str) -> Side | None:
        """Their features and hidden states of one tower, from the probe's pixels or tokens."""
        names, arrays = _hidden(self.theirs, side)
        features = self.theirs.get(f"{side}_features")
        if features is not None:
            names, arrays = [*names, f"{side}_features"], [*arrays, features]
        if not names:
            return None

        def predict(walk: Walk, rows: Rows) -> list[Array]:
            ours = self.tower(side, walk, rows, "probe")
            found = list(ours.hidden) if f"{side}_hidden" in self.theirs else []
            return [*found, ours.features] if features is not None else found

        few = self._few(side)
        cost = self.network.cost(side, few or len(self.inputs[side]))
        return Side(f"{side} tower", tuple(names), tuple(arrays), (side,), predict, few, cost=cost)

    def whole_side(self, side: str, open_knobs: tuple[str, ...]) -> Side | None:
        """Their features from pictures or texts, preprocessing and tower together."""
        key = "image_features_from_pictures" if side == "image" else "text_features_from_texts"
        inputs = "pixels" if side == "image" else "tokens"
        if key not in self.theirs or not (self.pictures if side == "image" else any(self.texts)):
            return None
        source = "theirs" if inputs in self.theirs else "made"

        def predict(walk: Walk, rows: Rows) -> list[Array]:
            return [self.tower(side, walk, rows, source).features]

        few = self._few(side)
        cost = self.network.cost(side, few or len(self.inputs[side]))
        return Side(key, (key,), (self.theirs[key],), open_knobs, predict, few, cost=cost)

    def logits_side(self, open_knobs: tuple[str, ...], walk: Walk) -> Side | None:
        """Their logits, from their own features where they gave them."""
        logits = self.theirs.get("logits_per_image")
        if logits is None:
            return None
        e = self.config.embed_dim

        def features(side: str, walk: Walk) -> Array:
            for key in (f"{side}_features", FROM[side]):
                given = self.theirs.get(key)
                if given is not None and given.shape[1] == e and side not in open_knobs:
                    return given
            found = self.tower(side, walk, None, "probe").features
            if found.shape[1] != e:  # not projected: cosines need what is
                walk = turn(walk, {side: {"projection": "as it is"}})
                found = self.tower(side, walk, None, "probe").features
            return found

        def predict(walk: Walk, rows: Rows) -> list[Array]:
            both = features("image", walk), features("text", walk)
            return [self.network.logits(*both, walk["logits"])]

        towers = [side for side in ("image", "text") if side in open_knobs]
        cost = sum(self.network.cost(side, len(self.inputs[side])) for side in towers)
        names = ("logits_per_image",)
        more = self._fit_scale(logits, predict(walk, None)[0])
        return Side("logits", names, (logits,), open_knobs, predict, cost=cost, more=more)

    def _fit_scale(self, theirs: Array, ours: Array) -> tuple[Variant, ...]:
        """The factor that turns our cosines into their logits best, unless the table names it.

        A fitted factor takes some of the rounding with it, so it would win over a fault of the
        table that is the truth.
        """
        if theirs.shape != ours.shape or not np.square(ours).sum() > 0:
            return ()
        right = self.network.factor(Logits())
        factor = right * float((theirs * ours).sum() / np.square(ours).sum())
        named = (self.network.factor(Logits(scale=scale)) for scale in NAMED_SCALES)
        if any(math.isclose(factor, known, rel_tol=SAME_SCALE) for known in named):
            return ()
        return (fitted_scale(factor, right),)

    def _few(self, side: str) -> int:
        """Rows of a search; BatchNorm in training mode needs the whole batch."""
        whole = side == "image" and self.network.is_resnet
        return 0 if whole else SEARCH_ROWS[side]


# Factors that faults of the table name, and how close a fitted one is to them where it is the same:
# float16's rounding of the logits.
NAMED_SCALES, SAME_SCALE = ("as it is", "none", "inverse", "twice"), 1e-3
FROM = {"image": "image_features_from_pictures", "text": "text_features_from_texts"}
