"""The source article's consistency test: compiled against not compiled, over `available_models()`.

The official files are not in the repository. Where the cache folder has one it is what is tested;
elsewhere random weights of the true shapes and number formats stand in for it, and the test's
property `weights` says so (`pytest -rP` prints it). The network is never used.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jaxclip
from experiments.lib.peers import archives
from jaxclip.config import RELEASED
from jaxclip.hub import released as downloads
from tests.support import foreign
from tests.support.tolerances import departure, within

EXAMPLE = Path(__file__).parents[2] / "examples" / "rocket.png"
QUICK = "ViT-B/32"  # the others take minutes on two cores


def weights(name: str, folder: Path) -> tuple[Path, str]:
    """The file to test, and in words which weights are in it."""
    official = downloads.cache_folder() / downloads.RELEASED_FILES[name].file_name
    if official.is_file():
        return official, f"{name}: the official file"
    path = folder / "model.pt"
    archives.write_torchscript_like(path, foreign.openai(RELEASED[name]))
    return path, f"{name}: random weights, as no official file is in the cache folder"


def probabilities(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == QUICK else pytest.mark.slow)
        for name in jaxclip.available_models()
    ],
)
def test_compiled_equals_op_by_op(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    from PIL import Image

    path, said = weights(name, tmp_path)
    record_property("weights", said)
    print(said)
    compiled, preprocess = jaxclip.load(path)
    by_op, _ = jaxclip.load(path, jit=False)
    image = preprocess(Image.open(EXAMPLE))[None]
    text = jaxclip.tokenize(["a diagram", "a dog", "a cat"])
    bound = within("jit, ResNet" if name.startswith("RN") else "jit")
    logits, expected = (np.asarray(model(image, text)[0]) for model in (compiled, by_op))
    assert departure(logits, expected) < bound
    assert departure(probabilities(logits), probabilities(expected)) < bound
    # the negative twin: the same picture, one pixel lower
    moved = np.roll(image, 1, axis=1)
    assert departure(by_op(moved, text)[0], logits) > bound
