"""Recipes: the presets are the published numbers, JSON both ways, and nonsense is refused."""

import dataclasses
import json

import pytest

from jaxclip.config import RELEASED
from jaxclip.training.recipe import EMOJI, PRESETS, Layout, TrainConfig, parse_rates

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
        recipe = PRESETS[name]
        assert recipe.model == RELEASED[name]
        assert (recipe.learning_rate, recipe.batch_size, recipe.warmup) == (rate, 32768, 2000)
        assert (recipe.weight_decay, recipe.text_length) == (0.2, 77)
        epochs = 1 if "336" in name else 32
        assert 0 <= epochs * 400_000_000 - recipe.steps * 32768 < 32768


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_survives_json(name):
    recipe = dataclasses.replace(PRESETS[name], rates=("^visual=0", "text=0.1"), average=0.99)
    assert TrainConfig.from_json(recipe.to_json()) == recipe


def test_a_config_of_an_older_version_gets_the_defaults():
    data = json.loads(TrainConfig(seed=3).to_json())
    for name in ("rates", "average", "parts", "dtype"):
        del data[name]
    assert TrainConfig.from_json(json.dumps(data)) == TrainConfig(seed=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, 0 came"),
        ({"parts": 0}, "parts must be"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"warmup": -1}, "warmup must not be negative"),
        ({"average": 1.0}, "average must be"),
        ({"dtype": "float16"}, "none of float32, bfloat16"),
        ({"remat": "some"}, "none of none, dots, full"),
        ({"text_length": 33}, "context length 32"),
        ({"rates": ("visual",)}, "PATTERN=FACTOR was expected"),
        ({"rates": ("(=1",)}, "PATTERN=FACTOR was expected"),
        ({"rates": ("visual=-1",)}, "PATTERN=FACTOR was expected"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_rates_are_read_from_the_last_equals_sign():
    assert parse_rates((r"^visual\.=0", "a=b=0.5")) == [(r"^visual\.", 0.0), ("a=b", 0.5)]


@pytest.mark.parametrize("changes", [{"loss": "rings"}, {"fsdp": 0}, {"threads": 0}, {"keep": 0}])
def test_a_layout_that_makes_no_sense_is_refused(changes):
    with pytest.raises(ValueError):
        Layout(**changes)


def test_a_file_that_is_no_recipe_is_refused():
    for text in ("", "[]", "{}", json.dumps({"steps": 1, "colour": 2, "model": None})):
        with pytest.raises(ValueError, match=r"not a (training|model) config"):
            TrainConfig.from_json(text)
    assert TrainConfig().model == EMOJI
