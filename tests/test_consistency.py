"""The source article's consistency test: compiled against not compiled, over `available_models()`.

The official files are not in the repository: random weights of the true shapes and number formats
stand in for them. With the files in the cache folder, `jaxclip verify NAME` checks the real ones.
"""

from pathlib import Path

import numpy as np
import pytest

import jaxclip
from jaxclip.config import RELEASED
from tests import archives, foreign
from tests.tolerances import departure, within

EXAMPLE = Path(__file__).parents[1] / "examples" / "rocket.png"
QUICK = "ViT-B/32"  # the others take minutes on two cores


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
def test_compiled_equals_op_by_op(name: str, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "model.pt"
    archives.write_torchscript_like(path, foreign.openai(RELEASED[name]))
    compiled, preprocess = jaxclip.load(path)
    by_op, _ = jaxclip.load(path, jit=False)
    image = preprocess(Image.open(EXAMPLE))[None]
    text = jaxclip.tokenize(["a diagram", "a dog", "a cat"])
    logits = np.asarray(compiled(image, text)[0])
    assert departure(by_op(image, text)[0], logits) < within("jit")
    assert departure(
        probabilities(np.asarray(by_op(image, text)[0])), probabilities(logits)
    ) < within("jit")
    # the negative twin: the same picture, one pixel lower
    moved = np.roll(image, 1, axis=1)
    assert departure(by_op(moved, text)[0], logits) > within("jit")
