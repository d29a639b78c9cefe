"""Suite `inference`: features of pictures and texts, beside every peer, on the same weights.

With `--precision bfloat16` the peers run in bfloat16 and in float32 as well, so that "best peer" is
the best of both.
"""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import jaxclip
from experiments.bench import peers as bench_peers
from experiments.bench.pairs import SuiteFlags, compared, in_turn, say
from jaxclip.cli.usage import Positive
from jaxclip.config import RELEASED, ClipConfig, ResNetConfig

MODELS = ("ViT-B/32", "ViT-B/16", "RN50", "text")
TEXT_OF = "ViT-B/32"  # whose text tower the row `text` is
APART = 0.05  # features of two sides lie closer, also in bfloat16, or the rows compare nothing


@dataclasses.dataclass(frozen=True)
class Flags(SuiteFlags):
    models: tuple[Literal[*RELEASED, "text"], ...] = tuple(MODELS)
    batches: tuple[Positive, ...] = (1, 8, 32)
    precision: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False
    """peers under torch.compile as well"""


def rows(flags: Flags) -> Iterator[dict[str, Any]]:
    """One row a model and batch size."""
    for name in flags.models:
        tower = "text" if name == "text" else "image"
        config = RELEASED[TEXT_OF if name == "text" else name]
        yield from measured(name, tower, config, flags)


def measured(name: str, tower: str, config: ClipConfig, flags: Flags) -> Iterator[dict[str, Any]]:
    """The rows of one tower; ValueError if the sides do not compute the same."""
    import torch

    torch.set_num_threads(flags.threads)
    dtype = flags.precision
    formats = [dtype] if dtype == "float32" else [dtype, "float32"]
    with tempfile.TemporaryDirectory() as folder:
        path = bench_peers.weights(config, Path(folder))
        model, _ = jaxclip.load(path, dtype=getattr(jnp, dtype), arrange=True)
        peers = {
            each: bench_peers.encoders(config, path, each, compiled=flags.compiled)
            for each in formats
        }
        for batch in flags.batches:
            say(f"{name}, batch {batch}, {dtype}")
            encode = model.encode_text if tower == "text" else model.encode_image
            sides: dict[str, Any] = {}
            for each in formats:
                ours, theirs = bench_peers.inputs(config, batch, each)
                found = _sides(encode, jnp.asarray(ours[tower]), peers[each], tower, theirs[tower])
                sides |= {_named(side, each, dtype): run for side, run in found.items()}
            with torch.inference_mode():
                features = {side: _array(run()) for side, run in sides.items()}
                for side, found in features.items():
                    _agree(side, found, features["jaxclip"])
                seconds = in_turn(sides, flags.pairs)
            what = {"model": name, "batch": batch, "precision": dtype, "threads": flags.threads}
            layout = "channels_last" if isinstance(config.vision, ResNetConfig) else ""
            yield compared(what | ({"peers' layout": layout} if layout else {}), seconds)


def _named(side: str, theirs: str, ours: str) -> str:
    return side if theirs == ours or side == "jaxclip" else f"{side}, {theirs}"


def _sides(
    encode: Any, rows: jax.Array, peers: dict[str, Any], tower: str, theirs: Any
) -> dict[str, Any]:
    sides = {"jaxclip": lambda: jax.block_until_ready(encode(rows))}
    return sides | {
        peer: lambda run=encoders[tower]: run(theirs) for peer, encoders in peers.items()
    }


def _array(features: Any) -> np.ndarray:
    features = bench_peers._features(features)
    return np.asarray(features.float() if hasattr(features, "numpy") else features, np.float32)


def _agree(side: str, found: np.ndarray, ours: np.ndarray) -> None:
    apart = float(np.abs(found - ours).max() / np.abs(ours).max())
    if not apart < APART:
        raise ValueError(f"features of {side} are {apart:.2g} from ours; are the weights the same?")
