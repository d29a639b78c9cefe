"""What counts as rounding at every stage, from what float32 does to the reference."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxclip import checkpoint, reference
from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.parity.ladder import compare
from jaxclip.parity.rungs import Rungs, reference_rungs

# What counts as rounding, over the largest value of a stage: MARGIN times the error of another
# program's float32 (the reference's; torch's in experiments/proofs/parity_table.py) and FLOOR. Sums
# in another order, and Winograd's convolutions, cost up to 2.5 times the reference's float32; a
# wrong epsilon or activation departs by a hundred times as much.
MARGIN = 4
FLOOR = 2e-5


def allowed(float32_error: float) -> float:
    """The relative error that counts as rounding, given that of another program's float32.

    FLOOR alone where that is no number: a stage that float32 cannot hold proves nothing.
    """
    return FLOOR + (MARGIN * float32_error if np.isfinite(float32_error) else 0.0)


def bounds(
    single: Mapping[str, np.ndarray],
    double: Mapping[str, np.ndarray],
    more: Sequence[Mapping[str, np.ndarray]] = (),
) -> dict[str, float]:
    """{stage: `allowed`} from the reference's rungs in float32 and in float64.

    more: rungs of other runs in float32, of some stages; the largest error of all runs counts.
    """
    found: dict[str, float] = {}
    for run in (single, *more):
        for rung in compare(run, double, dict.fromkeys(run, 0.0)):
            found[rung.name] = max(found.get(rung.name, 0.0), allowed(rung.relative))
    return found


def _perturb_pool(
    flat: Mapping[str, np.ndarray],
    heads: int,
    single: Mapping[str, np.ndarray],
    double: Mapping[str, np.ndarray],
    draws: int,
) -> list[Rungs]:
    params = checkpoint.nest({name: np.asarray(x, np.float64) for name, x in flat.items()})
    layer4, rng = double["image.layer4"], np.random.default_rng(0)
    error = single["image.layer4"] - layer4
    found: list[Rungs] = []
    for _ in range(draws):
        taps: dict[str, np.ndarray] = {}
        x = layer4 + rng.choice((-1.0, 1.0), error.shape) * error
        pool = params["visual"]["attnpool"]
        features = reference.attention_pool(x, pool, heads, taps)
        I_e = reference.l2_normalize(features)
        rungs = {"image.pooled": taps["pooled"], "image.features": features, "image_embeds": I_e}
        found.append(rungs | {"logits": reference.logits(I_e, double["text_embeds"], params)})
    return found


def perturb_pool(
    flat: Mapping[str, np.ndarray],
    config: ClipConfig,
    single: Mapping[str, np.ndarray],
    double: Mapping[str, np.ndarray],
    draws: int = 8,
) -> list[Rungs]:
    """The stages after a ResNet's layer4, with other signs of float32's error there; [] for a ViT.

    Where a head of sharp attention is near a tie, an error of 1e-7 becomes one of 1e-5. Its size
    depends on the signs: one run may depart by many times as much as another.
    """
    if not isinstance(config.vision, ResNetConfig):
        return []
    with np.errstate(all="ignore"):  # what float32 cannot hold is judged by its own run
        return _perturb_pool(flat, config.vision.heads, single, double, draws)


def judge(
    flat: Mapping[str, np.ndarray],
    config: ClipConfig,
    images: np.ndarray,
    tokens: np.ndarray,
    tell: Callable[[str], object] = lambda line: None,
) -> tuple[Rungs, dict[str, float]]:
    """(the reference's rungs in float64, the bound of every stage), for a model's flat parameters.

    The arguments are those of `reference_rungs`; `tell` is called with what is done next.
    """
    tell("running the reference in float64 ...")
    double = reference_rungs(flat, config, images, tokens)
    tell("running the reference in float32, for the bounds ...")
    single = reference_rungs(flat, config, images, tokens, np.float32)
    return double, bounds(single, double, perturb_pool(flat, config, single, double))
