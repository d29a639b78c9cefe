"""The released class names and templates: counted, checked, refused if not sound."""

from __future__ import annotations

import json

import pytest

from jaxclip.evaluation import prompts
from jaxclip.tokenizer import tokenize

COUNTS = {  # classes, templates: notebook Prompt_Engineering_for_ImageNet and data/prompts.md
    "imagenet": (1000, 80),
    "imagenetv2": (1000, 80),
    "cifar10": (10, 18),
    "cifar100": (100, 18),
    "food101": (101, 1),
    "oxford_pets": (37, 1),
    "fashion_mnist": (10, 1),
    "celeba": (0, 1),
    "custom": (0, 1),
}


def test_every_list_has_as_many_as_released():
    assert {
        n: (len(p.classes), len(p.templates)) for n in prompts.available() if (p := prompts.load(n))
    } == COUNTS


@pytest.mark.parametrize("name", COUNTS)
def test_every_prompt_fits_a_model_and_has_an_origin(name):
    known = prompts.load(name)
    texts = [t.format(c) for c in known.classes or ("somebody",) for t in known.templates[:3]]
    assert tokenize(texts).shape == (len(texts), 77)
    assert known.metric == ("mean_per_class" if name == "oxford_pets" else "top1")


def test_imagenet_is_the_released_list():
    known = prompts.load("imagenet")
    places = {0: "tench", 21: "kite (bird of prey)", 134: "crane bird", 517: "construction crane"}
    places |= {677: "metal nail", 272: "coyote", 999: "toilet paper", 271: "red wolf or maned wolf"}
    assert {i: known.classes[i] for i in places} == places
    twice = {name for name in known.classes if known.classes.count(name) > 1}
    assert twice == {"missile", "sunglasses"}
    assert known.folders[0] == "n01440764" and list(known.folders) == sorted(set(known.folders))
    assert known.templates[0] == "a bad photo of a {}." and len(set(known.templates)) == 80
    seven = prompts.load("imagenet", "seven").templates
    assert seven == (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    )
    assert set(seven) < set(known.templates)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"templates": []}, "at least one"),
        ({"templates": ["a photo"]}, "one slot"),
        ({"templates": ["{} {}"]}, "one slot"),
        ({"templates": ["{0}"]}, "one slot"),
        ({"templates": "a {}"}, "list of texts"),
        ({"classes": ["a", ""]}, "list of texts"),
        ({"classes": [1]}, "list of texts"),
        ({"metric": "luck"}, "expected one of top1"),
        ({"folders": ["x"]}, "expected 2, one a class, got 1"),
    ],
)
def test_a_file_that_is_not_sound_is_refused(tmp_path, change, says):
    path = tmp_path / "own.json"
    sound = {"classes": ["a", "b"], "templates": ["a {}"]}
    path.write_text(json.dumps(sound))
    assert prompts.load(str(path)).classes == ("a", "b")
    path.write_text(json.dumps(sound | change))
    with pytest.raises(ValueError, match=says) as error:
        prompts.load(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json"])
def test_a_file_of_another_kind_is_refused(tmp_path, text):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(ValueError, match="classes and prompts of"):
        prompts.load(str(tmp_path / "own.json"))


@pytest.mark.parametrize("content", ["[]", '"a"', '{"template_sets": [1], "templates": ["{}"]}'])
@pytest.mark.parametrize("template_set", ["", "one"])
def test_what_is_no_object_is_told_in_plain_words(tmp_path, content, template_set):
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(ValueError, match=r"expected .*JSON object.*, got another value"):
        prompts.load(str(tmp_path / "own.json"), template_set)


@pytest.mark.parametrize("name", [" ", "\ud800"])
def test_a_class_is_more_than_space_and_no_half_character(tmp_path, name):
    (tmp_path / "own.json").write_text(json.dumps({"classes": [name], "templates": ["{}"]}))
    with pytest.raises(ValueError, match="classes: expected a list of texts"):
        prompts.load(str(tmp_path / "own.json"))


def test_a_file_of_ones_own_may_have_a_mark_and_other_separators(tmp_path):
    """As Windows writes it; `caption` lists and prompts follow one rule for text."""
    text = '{"classes": ["a\u2028b", "c"], "templates": ["a {}"]}'
    (tmp_path / "mine.json").write_bytes(text.encode("utf-8-sig"))
    assert prompts.load(str(tmp_path / "mine.json")).classes == ("a\u2028b", "c")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 100_000, "nested too deeply"),
        ('{"classes": ["K\xe4tzchen"]}'.encode("latin-1"), "expected UTF-8"),
        (b'{"classes": []}', "it has no 'templates'"),
        (b"[]", "mine.json"),
    ],
)
def test_a_damaged_file_of_ones_own_is_refused_by_name(tmp_path, content, says):
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        prompts.load(str(tmp_path / "mine.json"))
