"""Recipe, execution and presets of training runs. Without jax."""

import dataclasses
import json
import math
import re
from typing import Literal, Self, get_args

from jaxclip.config import (
    RELEASED,
    ClipConfig,
    PictureConfig,
    Remat,
    ResNetConfig,
    TextConfig,
    VisionConfig,
    require,
)

Dtype = Literal["float32", "bfloat16"]
Decoder = Literal["full", "reduced"]
LossName = Literal["dense", "gathered", "ring", "chunked"]
AttentionName = Literal["auto", "einsum", "xla", "cudnn", "pallas"]

MOST = 2**31 - 1  # steps are counted in 32 bits
RANGES = {  # of whole numbers
    "steps": (1, MOST),
    "batch_size": (2, 2**20),
    "warmup": (0, MOST),
    "seed": (0, 2**32 - 1),  # jax reads no more bits of it
    "text_length": (3, MOST),
    "log_every": (1, MOST),
    "evaluate_every": (1, MOST),
    "save_every": (1, MOST),
    "microbatches": (1, 2**20),
}
REAL_RANGES = {"learning_rate": (0.0, 1e3), "weight_decay": (0.0, 1e3), "average": (0.0, 1.0)}
REAL_RANGES |= {"beta2": (0.0, 1.0), "clip_norm": (0.0, 1e6)}


def require_whole(name: str, value: object, low: int, high: int) -> None:
    """ValueError unless the value is a whole number within the range."""
    require(
        type(value) is int and low <= value <= high,
        f"{name}: expected a whole number from {low} to {high}, got {value!r}",
    )


def _require_real(name: str, value: object, low: float, high: float) -> None:
    require(
        isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high,
        f"{name}: expected a number from {low:g} to {high:g}, got {value!r}",
    )


# Small enough for two cores. Two thousand names with three drawings each are few: on them a small
# ResNet, which knows beforehand that a drawing may lie anywhere, learns several times as much a
# picture as a Vision Transformer of the same cost; and the bag of words starts to learn at once,
# where a text transformer first spends a hundred steps on nothing.
def _emoji(width: int, layers: tuple[int, int, int, int]) -> ClipConfig:
    text = TextConfig(width=128, context_length=32, kind="cbow")
    return ClipConfig(ResNetConfig(64, width, layers), text, embed_dim=192)


EMOJI = _emoji(16, (1, 1, 1, 1))  # what ten minutes are enough for
EMOJI_FULL = _emoji(24, (1, 1, 2, 1))  # the embedded model


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that the numbers of a training run depend on; kept in its run folder."""

    steps: int = 640
    """Updates of the weights."""
    batch_size: int = 256
    """Pairs a step, over all devices and processes."""
    learning_rate: float = 3e-3
    """Greatest learning rate, reached after the warm-up."""
    warmup: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.2
    """Decoupled weight decay, on matrices only."""
    beta2: float = 0.0
    """AdamW's decay of the mean of the squared gradients; 0 is the paper's for the image tower."""
    clip_norm: float = 0.0
    """Greatest norm of the gradient of all parameters together; what is longer is scaled down to
    it. 0 clips nothing."""
    seed: int = 0
    """Of the weights, the order of the data and the augmentation."""
    text_length: int = 20
    """Tokens of a caption that are kept in training; 77 is all that the released models take."""
    decoder: Decoder = "reduced"
    """Of pictures in files: "full" as evaluation decodes them; "reduced" decodes a JPEG at 1/2, 1/4
    or 1/8 where the crop needs no more."""
    log_every: int = 10
    """Steps from one line of metrics.jsonl to the next."""
    evaluate_every: int = 200
    """Steps between evaluations on what is held out."""
    save_every: int = 100
    """Steps between saves of the whole state, from which --resume continues."""
    dtype: Dtype = "float32"
    """Of matrix products; weights, norms, softmax and loss stay in float32."""
    remat: Remat = "none"
    """What the backward pass computes again, from nothing to whole blocks: "full" takes the least
    memory and a third more work."""
    microbatches: int = 1
    """Microbatches that a batch passes the towers in (gradient caching), for less memory."""
    rates: tuple[str, ...] = ()
    """PATTERN=FACTOR on the rate of the parameters whose path has the pattern; 0 locks them."""
    first_moment: Dtype = "float32"
    """Number format in which AdamW keeps the mean of the gradients."""
    average: float = 0.0
    """Decay of the moving average of the weights, such as 0.9999; 0 keeps none."""
    model: ClipConfig = EMOJI
    """The model to train."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            require_whole(name, getattr(self, name), low, high)
        for name, (least, most) in REAL_RANGES.items():
            _require_real(name, getattr(self, name), least, most)
        choices_of = {"remat": Remat, "dtype": Dtype, "first_moment": Dtype, "decoder": Decoder}
        for name, choices in choices_of.items():
            value, known = getattr(self, name), get_args(choices)
            require(value in known, f"{name}: expected {', '.join(known)}, got {value!r}")
        require(self.learning_rate > 0, "learning_rate: expected more than 0, got 0")
        require(self.average < 1, f"average: expected less than 1, got {self.average}")
        require(self.beta2 < 1, f"beta2: expected less than 1, got {self.beta2}")
        require(
            self.batch_size % self.microbatches == 0,
            f"microbatches: expected a divisor of the batch of {self.batch_size}, "
            f"got {self.microbatches}",
        )
        context = self.model.text.context_length
        require(
            self.text_length <= context,
            f"text_length: expected 3 to {context}, the model's context length, "
            f"got {self.text_length}",
        )
        require(
            self.text_length == context or not self.model.text.fixed_length,
            f"text_length: expected {context}, the model's context length, as its text tower reads "
            f"the padding too, got {self.text_length}",
        )
        parse_rates(self.rates)

    def to_json(self) -> str:
        """The recipe as indented JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The recipe that `to_json` wrote; ValueError names what is wrong with any other text."""
        try:
            data = {**json.loads(text)}
            if "parts" in data:  # its name in runs of version 0.1
                data["microbatches"] = data.pop("parts")
            data.setdefault("decoder", "full")  # the only one of older runs
            if data.get("remat") == "dots":  # in runs of version 0.1 and 0.2
                data["remat"] = "products"
            model = ClipConfig.from_json(json.dumps(data["model"]))
            return cls(**{**data, "model": model, "rates": tuple(data.get("rates", ()))})
        except (TypeError, KeyError, RecursionError, json.JSONDecodeError) as error:
            message = f"expected a recipe that Recipe.to_json wrote, got another text ({error})"
            raise ValueError(message) from None


def parse_rates(texts: tuple[str, ...]) -> list[tuple[str, float]]:
    """PATTERN=FACTOR texts as `finetune.Rates`; ValueError where one is something else."""
    found = []
    for text in texts:
        pattern, equals, factor = text.rpartition("=") if isinstance(text, str) else ("", "", "")
        try:
            re.compile(pattern)
            value = float(factor)
        except (re.error, ValueError, OverflowError, RecursionError):
            value = math.nan
        require(
            bool(equals) and 0 <= value < math.inf,
            f"rates: expected PATTERN=FACTOR, a regular expression and a number of at least 0, "
            f"got {text!r}",
        )
        found.append((pattern, value))
    return found


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is executed: its speed, memory and rounding depend on it, and no other numbers.

    A resumed run may be executed differently.
    """

    loss: LossName = "dense"
    """How the one loss is computed: "ring" (one device: "chunked") holds least of the logits."""
    fsdp: int = 1
    """Devices that share parameters and moments."""
    tensor: int = 1
    """Devices that share a matrix product."""
    attention: AttentionName = "auto"
    """The kernel of attention: "auto" is the fastest measured on the chip that can run here."""
    threads: int = 8
    """Threads a process that read and decode."""
    keep: int = 3
    """Checkpoints that stay."""

    def __post_init__(self) -> None:
        for name, high in (("fsdp", 2**20), ("tensor", 2**20), ("threads", 1024), ("keep", 2**20)):
            require_whole(name, getattr(self, name), 1, high)
        for name, choices in (("loss", LossName), ("attention", AttentionName)):
            value, known = getattr(self, name), get_args(choices)
            require(value in known, f"{name}: expected {', '.join(known)}, got {value!r}")


# The paper's recipe (sections 2.4, 2.5 and tables 18 to 20): 400 million pairs, 32 epochs.
PAPER_PAIRS, PAPER_BATCH, PAPER_EPOCHS = 400_000_000, 32_768, 32
PAPER_RATES = {"RN50x16": 4e-4, "RN50x64": 3.6e-4, "ViT-L/14": 4e-4, "ViT-L/14@336px": 2e-5}


def paper(name: str) -> Recipe:
    """The published recipe of a released model; beta and epsilon follow from the kind of tower.

    ViT-L/14@336px is one epoch more, from the finished ViT-L/14 (section 2.5). What the paper
    leaves open is the schedule of that epoch: here the same, with as many steps of warm-up.
    """
    epochs = 1 if name == "ViT-L/14@336px" else PAPER_EPOCHS
    return Recipe(
        steps=epochs * PAPER_PAIRS // PAPER_BATCH,
        batch_size=PAPER_BATCH,
        learning_rate=PAPER_RATES.get(name, 5e-4),
        warmup=2000,
        text_length=77,
        evaluate_every=2000,
        save_every=1000,
        dtype="bfloat16",  # float16 with a scaled loss in the paper, which TPUs do not have
        remat="full",
        model=RELEASED[name],
    )


HALF = (0.5, 0.5, 0.5)


def _siglip_b16() -> ClipConfig:
    """SigLIP B/16 at 224 pixels, with its C4 vocabulary (arXiv 2303.15343; big_vision)."""
    vision = VisionConfig(
        224,
        16,
        768,
        layers=12,
        heads=12,
        layer_norm_epsilon=1e-6,
        patch_bias=True,
        class_token=False,
        pre_norm=False,
        pooling="attention",
        projection="none",
    )
    text = TextConfig(
        768,
        layers=12,
        heads=12,
        context_length=64,
        vocab_size=32_000,
        layer_norm_epsilon=1e-6,
        causal=False,
        pooling="last",
        projection="linear",
    )
    pictures = PictureConfig(mean=HALF, std=HALF, resize="squash")
    return ClipConfig(vision, text, 768, "gelu_tanh", logit_bias=True, pictures=pictures)


# SigLIP from scratch: batch, examples seen, rate, decay and beta2 of the paper's section 4, which
# could not be opened when this was written: check them before a long run. The warm-up of 3 % and
# the gradient's norm of at most 1 are those of the authors' example
# (big_vision/configs/proj/image_text/siglip_lit_coco.py).
SIGLIP_EXAMPLES, SIGLIP_BATCH = 9_000_000_000, 32_768
SIGLIP = Recipe(
    steps=SIGLIP_EXAMPLES // SIGLIP_BATCH,
    batch_size=SIGLIP_BATCH,
    learning_rate=1e-3,
    warmup=SIGLIP_EXAMPLES // SIGLIP_BATCH * 3 // 100,
    weight_decay=1e-4,
    beta2=0.95,
    clip_norm=1.0,
    text_length=64,
    evaluate_every=2000,
    save_every=1000,
    dtype="bfloat16",
    remat="full",
    model=_siglip_b16(),
)

# LAION's CLIP ViT-H/14: batch (96 on each of 824 GPUs), rate and examples seen as in the name of
# its run, Model-H-14_Data-2B_Samples-34B_lr-5e-4_bs-79k (laion/scaling-laws-openclip; arXiv
# 2212.07143). The warm-up is that of the same table's other runs of 34 billion; weight decay,
# beta2 and epsilon are open_clip's defaults, which are the paper's.
LAION_EXAMPLES, LAION_BATCH = 34_000_000_000, 79_104
LAION_H14 = Recipe(
    steps=LAION_EXAMPLES // LAION_BATCH,
    batch_size=LAION_BATCH,
    learning_rate=5e-4,
    warmup=10_000,
    text_length=77,
    evaluate_every=2000,
    save_every=1000,
    dtype="bfloat16",
    remat="full",
    model=ClipConfig(
        VisionConfig(224, 14, 1280, layers=32, heads=16),
        TextConfig(1024, layers=24, heads=16),
        1024,
        "gelu",
    ),
)

presets: dict[str, Recipe] = {
    "quick": Recipe(),
    "full": Recipe(steps=2400, model=EMOJI_FULL),
    **{name: paper(name) for name in RELEASED},
    "SigLIP-B/16": SIGLIP,
    "CLIP-ViT-H/14": LAION_H14,
}
