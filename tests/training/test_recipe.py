"""Recipes: the presets are the published numbers, JSON both ways, and nonsense is refused."""

import dataclasses
import json

import pytest

from jaxclip.config import RELEASED
from jaxclip.training.recipe import EMOJI, Execution, Recipe, parse_rates, presets

# The paper, section 2.5 and its tables of hyperparameters.
RATES = {
    "RN50": 5e-4,
    "RN101": 5e-4,
    "RN50x4": 5e-4,
    "RN50x16": 4e-4,
    "RN50x64": 3.6e-4,
    "ViT-B/32": 5e-4,
    "ViT-B/16": 5e-4,
    "ViT-L/14": 4e-4,
    "ViT-L/14@336px": 2e-5,
}


def test_every_released_model_has_the_recipe_of_the_paper():
    assert list(RATES) == list(RELEASED)
    for name, rate in RATES.items():
        recipe = presets[name]
        assert recipe.model == RELEASED[name]
        assert (recipe.learning_rate, recipe.batch_size, recipe.warmup) == (rate, 32768, 2000)
        assert (recipe.weight_decay, recipe.text_length) == (0.2, 77)
        epochs = 1 if "336" in name else 32
        assert 0 <= epochs * 400_000_000 - recipe.steps * 32768 < 32768


@pytest.mark.parametrize("name", presets)
def test_a_recipe_survives_json(name):
    recipe = dataclasses.replace(presets[name], rates=("^visual=0", "text=0.1"), average=0.99)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_config_of_an_older_version_gets_the_defaults():
    data = json.loads(Recipe(seed=3).to_json())
    for name in ("rates", "average", "microbatches", "dtype", "clip_norm", "beta2"):
        del data[name]
    assert Recipe.from_json(json.dumps(data)) == Recipe(seed=3)


def test_a_run_of_before_goes_on_with_the_full_decode():
    data = json.loads(Recipe().to_json())
    assert data.pop("decoder") == "reduced"
    assert Recipe.from_json(json.dumps(data)) == Recipe(decoder="full")


def test_microbatches_are_read_under_their_old_name():
    data = json.loads(Recipe(microbatches=4).to_json())
    data["parts"] = data.pop("microbatches")
    assert Recipe.from_json(json.dumps(data)) == Recipe(microbatches=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: expected a whole number from 1 to 2147483647, got 0"),
        ({"steps": 1.5}, "steps: expected a whole number .*, got 1.5"),
        ({"steps": True}, "steps: expected a whole number .*, got True"),
        ({"microbatches": 0}, "microbatches: expected"),
        ({"microbatches": 3}, "microbatches: expected a divisor of the batch of 256, got 3"),
        ({"batch_size": 1}, "batch_size: expected a whole number from 2 to 1048576, got 1"),
        ({"batch_size": 10**12}, "batch_size: expected"),
        ({"seed": -1}, "seed: expected a whole number from 0 to 4294967295, got -1"),
        ({"seed": 2**70}, "seed: expected"),
        ({"learning_rate": float("nan")}, "learning_rate: expected"),
        ({"learning_rate": float("inf")}, "learning_rate: expected"),
        ({"learning_rate": 0}, "learning_rate: expected"),
        ({"learning_rate": "fast"}, "learning_rate: expected"),
        ({"weight_decay": -0.1}, "weight_decay: expected"),
        ({"weight_decay": float("nan")}, "weight_decay: expected"),
        ({"warmup": -1}, "warmup: expected"),
        ({"average": 1.0}, "average: expected"),
        ({"clip_norm": -1.0}, "clip_norm: expected a number from 0 to 1e\\+06, got -1.0"),
        ({"clip_norm": float("nan")}, "clip_norm: expected"),
        ({"dtype": "float16"}, "dtype: expected float32, bfloat16, got 'float16'"),
        ({"decoder": "half"}, "decoder: expected full, reduced, got 'half'"),
        (
            {"remat": "some"},
            "remat: expected none, products, products_and_attention, full, got 'some'",
        ),
        ({"text_length": 2}, "text_length: expected"),
        ({"text_length": 33}, "text_length: expected 3 to 32, the model's context length, got 33"),
        ({"rates": ("visual",)}, "rates: expected PATTERN=FACTOR"),
        ({"rates": ("(=1",)}, "rates: expected PATTERN=FACTOR"),
        ({"rates": ("visual=-1",)}, "rates: expected PATTERN=FACTOR"),
        ({"rates": ("visual=inf",)}, "rates: expected PATTERN=FACTOR"),
        ({"rates": ("a{99999999999}=1",)}, "rates: expected PATTERN=FACTOR"),
        ({"rates": (5,)}, "rates: expected PATTERN=FACTOR"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)


def test_rates_are_read_from_the_last_equals_sign():
    assert parse_rates((r"^visual\.=0", "a=b=0.5")) == [(r"^visual\.", 0.0), ("a=b", 0.5)]


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "rings"},
        {"fsdp": 0},
        {"threads": 0},
        {"threads": 10**9},
        {"keep": 0},
        {"keep": True},
    ],
)
def test_an_execution_that_makes_no_sense_is_refused(changes):
    with pytest.raises(ValueError):
        Execution(**changes)


def test_a_file_that_is_no_recipe_is_refused():
    for text in (
        "",
        "[]",
        "{}",
        '"parts"',
        '["parts"]',
        json.dumps({"steps": 1, "colour": 2, "model": None}),
    ):
        with pytest.raises(ValueError, match=r"expected a (recipe|config) that"):
            Recipe.from_json(text)
    assert Recipe().model == EMOJI
