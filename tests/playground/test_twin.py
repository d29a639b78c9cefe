"""The page's training run is the project's: the same losses from the same seed."""

from typing import Any

import numpy as np
import pytest

from experiments.proofs.playground_twin import (
    DEFAULTS,
    PAGE,
    Random,
    losses_in_javascript,
    losses_in_python,
)
from experiments.recipes.playground_drawings import load_drawings, read_drawings
from tests.support.node import needs_node, run_node
from tests.support.tolerances import within

SEEDS = (0, 1, 2)
STEPS = 100
OTHERS: dict[str, dict[str, Any]] = {
    "sigmoid, on a sphere, with keywords": {
        "loss": "sigmoid",
        "embedding": 3,
        "wording": "keywords",
        "shift": 0,
    },
    "one-sided at a fixed temperature, two blocks, dealt names": {
        "loss": "oneSided",
        "temperature": "fixed",
        "scale": 20.0,
        "layers": 2,
        "patch": 8,
        "wording": "dealt",
        "batch": 8,
    },
}
MISTAKES = {
    "no weight decay": {"decay": 0},
    "Adam's epsilon 1e-7": {"adamEpsilon": 1e-7},
    "layer norm's epsilon 1e-7": {"epsilon": 1e-7},
    "the ResNet's second beta": {"beta2": 0.999},
    "a fixed temperature": {"temperature": "fixed"},
}


def apart(one: list[float], other: list[float]) -> float:
    return float(np.abs(np.subtract(one, other)).max())


@pytest.fixture(scope="module")
def ours() -> dict[int, list[float]]:
    return losses_in_python({}, SEEDS, STEPS)


@needs_node
def test_losses_are_the_projects_for_three_seeds(ours: dict[int, list[float]]) -> None:
    page = losses_in_javascript({}, SEEDS, STEPS)
    for seed in SEEDS:
        assert apart(ours[seed], page[seed]) < within("playground losses")
    assert apart(ours[0], ours[1]) > 0.1  # another seed is another run
    assert np.mean(ours[0][-10:]) < np.log(DEFAULTS["batch"]) / 2


@needs_node
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistake_is_noticed(ours: dict[int, list[float]], mistake: str) -> None:
    page = losses_in_javascript(MISTAKES[mistake], SEEDS[:1], STEPS)
    assert apart(ours[0], page[0]) > 2 * within("playground losses")


@needs_node
def test_plain_javascript_gives_the_same_losses(ours: dict[int, list[float]]) -> None:
    page = losses_in_javascript({}, SEEDS[:1], 20, plain=True)
    assert apart(ours[0][:20], page[0]) < within("playground losses")


@needs_node
@pytest.mark.parametrize("choice", OTHERS)
def test_losses_are_the_projects_whatever_is_chosen(choice: str) -> None:
    options = OTHERS[choice]
    ours = losses_in_python(options, (3,), 25)
    page = losses_in_javascript(options, (3,), 25)
    assert apart(ours[3], page[3]) < within("playground losses")


def test_generator_is_mulberry32() -> None:
    # https://github.com/bryc/code: the first numbers from the seed 1
    assert Random(1).many(3).tolist() == [2693262067, 11749833, 2265367787]
    one, other = Random(7), Random(7)
    assert [int(one.many(1)[0]) for _ in range(5)] == other.many(5).tolist()


def test_drawings_of_the_page_are_the_embedded_ones() -> None:
    page, embedded = read_drawings(), load_drawings()
    np.testing.assert_array_equal(page.pixels, embedded.pixels)
    assert page.keywords == embedded.keywords
    assert (PAGE / "drawings.json").stat().st_size < 2**19


@needs_node
def test_generators_of_both_languages_agree() -> None:
    script = PAGE.parents[1] / "tests" / "playground" / "generator.mjs"
    got = run_node(script, "12345")
    random = Random(12345)
    assert got == [
        random.many(4).tolist(),
        random.normal(4).tolist(),
        random.permutation(9),
        [random.whole(10) for _ in range(4)],
    ]
