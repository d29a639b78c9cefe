"""One row of a comparison: a peer's file loaded here, every tensor and every stage compared."""

import gc
import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxclip
from experiments.lib.peers.model_cases import Case
from experiments.lib.peers.model_peers import Arrays, inputs, reduced_timm, without_decoder
from jaxclip import convert
from jaxclip.config import TowerConfig
from jaxclip.convert.conversion import to_layout
from jaxclip.hub import load as hub
from jaxclip.shapes import parameters

# What ours may depart from float64: so many times what torch's float32 departs, and so much of the
# largest value, eight roundings, for stages where torch's error happens to be next to nothing. At
# most 5.1 times was measured, for logits of a ResNet, and at most 0.62 of what is allowed. The
# smallest mistake, tanh for exact GELU, departs by 1.5e-4 of the largest value.
TIMES, FLOOR = 4.0, 1e-6


def layout_of(loaded: convert.Loaded) -> str:
    """The layout by the name that `convert` takes."""
    name = str(loaded.notes["converted"]["layout"])
    return name.split(" ")[0]


def count_unequal(loaded: convert.Loaded, theirs: Arrays) -> int:
    """Tensors that are not, bit for bit, the file's own once written back in its layout."""
    layout: Any = layout_of(loaded)
    again = to_layout(loaded, layout)
    names = again.keys() | theirs.keys()
    return sum(
        name not in again or name not in theirs or not _equal(again[name], theirs[name])
        for name in names
    )


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


def run_ours(loaded: convert.Loaded, images: Any, tokens: Any) -> Arrays:
    """The stages that a peer's `run` gives, from our model."""
    if isinstance(loaded.config, TowerConfig):
        tower: Any = "text" if images is None else "image"
        alone, _ = hub.load(loaded, tower=tower, precision="highest")
        encode = alone.encode_text if images is None else alone.encode_image
        given = tokens if images is None else images
        hidden = alone.hidden_states(given)
        return {"features": np.asarray(encode(given)), "hidden_states": np.asarray(hidden)}
    model, _ = jaxclip.load(loaded, precision="highest")

    def all_stages(model: Any, images: Any, tokens: Any) -> Any:
        features = model.encode_image(images), model.encode_text(tokens)
        return *features, model(images, tokens)[0]

    names = ("image_features", "text_features", "logits")
    return dict(
        zip(names, map(np.asarray, jax.jit(all_stages)(model, images, tokens)), strict=True)
    )


def _stage(got: np.ndarray, single: np.ndarray, double: np.ndarray) -> dict[str, float]:
    """Errors of ours and of torch's float32 against its float64, and what ours may be."""
    largest = float(np.abs(double).max())
    error, torch_error = (float(np.abs(x - double).max()) for x in (got, single))
    bound = TIMES * torch_error + FLOOR * largest
    return {"largest": largest, "error": error, "torch error": torch_error, "allowed": bound}


def measure(case: Case, folder: Path) -> tuple[dict[str, Any], convert.Loaded, Arrays]:
    """(row, the model as it was loaded, torch's stages in float64)."""
    peer = case.make()
    peer.save(folder)
    count = sum(value.numel() for _, value in without_decoder(peer.model.named_parameters()))
    loaded = convert.load(folder)
    config = loaded.config
    size = None if config.vision is None else config.vision.image_size
    images, tokens = inputs(size, config.text)
    single = peer.run(peer.model, images, tokens)
    double = peer.run(peer.model.double(), images, tokens)
    del peer
    gc.collect()
    ours = sum(
        math.prod(shape)
        for path, shape in parameters(config).items()
        if not path.endswith((".mean", ".var"))
    )
    unequal = count_unequal(loaded, dict(without_decoder(convert.read(folder).items())))
    got = run_ours(loaded, images, tokens)
    stages = {name: _stage(got[name], single[name], double[name]) for name in double}
    holds = all(stage["error"] <= stage["allowed"] for stage in stages.values())
    row = {
        "model": case.name,
        "family": case.family,
        "layout": case.layout,
        "parameters": ours,
        "parameters of the library": count,
        "tensors unequal": unequal,
        "stages": stages,
        "holds": bool(holds and unequal == 0 and ours == count),
    }
    return row, loaded, double


def measure_in_temporary_folder(case: Case) -> dict[str, Any]:
    """The row of a case; its files are removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        if case.settings is None:
            return measure(case, Path(folder))[0]
        with reduced_timm(case.settings):
            return measure(case, Path(folder))[0]
