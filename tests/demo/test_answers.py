"""The answers behind the tabs, with the embedded model, without gradio."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxclip
from jaxclip import cli
from jaxclip.cli.search_folder import PictureFolder
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.demo import html
from jaxclip.demo.answers import MOST_CELLS, MOST_LABELS, Answers, Photos, Picture, Seen, overlay
from jaxclip.images.preprocess import Preprocess
from jaxclip.search.classified_page import label_bars, remarks
from tests.support.command import EXAMPLES, LABELS, fails
from tests.support.random_clip import random_clip

NAMES = {path.stem: path for path in EXAMPLES}
LINES = "\n".join(LABELS)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Of the embedded model and an indexed folder of four drawings."""
    folder = tmp_path_factory.mktemp("photos")
    for path in EXAMPLES:
        shutil.copy(path, folder)
    where = tmp_path_factory.mktemp("index")
    assert cli.main(["index", str(folder), "--index", str(where)]) == 0
    photos = Photos(folder, where, PictureFolder(folder, where, "emoji").key)
    return Answers(*jaxclip.load("emoji"), photos)


def test_probabilities_are_the_softmax_of_scaled_cosines(answers: Answers) -> None:
    scores = answers.classify(NAMES["rocket"], LINES, "").labels
    assert [scores[0].label, len(scores)] == ["rocket", 4]
    assert sum(score.probability for score in scores) == pytest.approx(1)
    scaled = float(np.exp(answers.model.logit_scale[...])) * np.array([x.cosine for x in scores])
    expected = np.exp(scaled - scaled.max()) / np.exp(scaled - scaled.max()).sum()
    np.testing.assert_allclose([x.probability for x in scores], expected, atol=1e-5)
    other = answers.classify(NAMES["rocket"], LINES, "a drawing of a {}\n{} emoji").labels
    assert abs(other[0].cosine - scores[0].cosine) > 1e-3  # the prompts are used


def test_the_page_says_where_no_label_fits_as_the_command_does(
    answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    for labels in (["rocket", "bicycle"], ["tax law", "monday"]):
        told = remarks(answers.classify(NAMES["rocket"], "\n".join(labels), ""))
        assert ("no label fits" in told) is (labels[0] != "rocket")
        assert cli.main(["classify", str(NAMES["rocket"]), "--labels", *labels]) == 0
        assert ("no label fits" in capsys.readouterr().out) is ("no label fits" in told)


def test_what_is_known_is_not_encoded_again(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers.classify(NAMES["bicycle"], LINES, "")
    encoded: list[int] = []
    model = answers.model
    encode = type(model).encode_text
    monkeypatch.setattr(type(model), "encode_image", None)
    monkeypatch.setattr(
        type(model), "encode_text", lambda self, x: encoded.append(len(x)) or encode(self, x)
    )
    answers.classify(NAMES["bicycle"], f"{LINES}\nsnail", "")
    assert encoded == [1]
    answers.classify(NAMES["bicycle"], f"snail\n\n {LINES} ", "")
    assert encoded == [1]


def test_search_adds_words_and_a_picture_and_takes_away(answers: Answers) -> None:
    def first(*given: object) -> str:
        return Path(answers.search(*given)[0][0]).stem  # type: ignore[arg-type]

    assert first("a rocket", None, 1, "", 4) == "rocket"
    assert first("", NAMES["bicycle"], 1, "", 1) == "bicycle"
    assert first("", NAMES["bicycle"], -1, "", 1) != "bicycle"
    assert first("a rocket", NAMES["rocket"], -1, "", 4) != "rocket"
    last = answers.search("bicycle", None, 1, "cat face", 4)[-1]
    assert Path(last[0]).stem == "cat-face"


@pytest.mark.usefixtures("quick_compiling")
def test_look_lays_maps_over_the_picture(answers: Answers) -> None:
    maps = answers.look(NAMES["rocket"], "rocket")
    assert [seen.name for seen in maps] == ["relevance of 'rocket'", "attention of the pool"]
    for seen in maps:
        assert seen.weights.max() == 1 and seen.weights.min() >= 0
        assert seen.picture.shape == (64, 64, 3)
        assert overlay(seen, 96).size == (96, 96)
    assert len(answers.look(NAMES["rocket"], " ")) == 1  # without words: attention alone


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_look_shows_every_map_that_a_transformer_has(pooling: str) -> None:
    vision = VisionConfig(24, 8, 12, 2, 2, pooling=pooling)
    config = ClipConfig(vision, TextConfig(8, 1, 2, 32, 49408, "cbow"), 5)
    maps = Answers(random_clip(config), Preprocess.of(config)).look(NAMES["rocket"], "a\n rocket")
    assert [seen.name.split()[0] for seen in maps] == [
        "relevance",
        *["attention"] * (2 if pooling == "class" else 1),
    ]
    assert maps[0].name == "relevance of 'a rocket'"
    assert all(seen.weights.shape == (3, 3) for seen in maps)
    assert all(seen.picture.shape == (24, 24, 3) for seen in maps)


def test_an_overlay_leaves_a_picture_alone_where_nothing_weighs(answers: Answers) -> None:
    seen = answers.look(NAMES["rocket"], "")[0]
    weights = np.array([[0.0, 1.0], [0.0, 1.0]])
    mixed = np.asarray(overlay(type(seen)("", seen.picture, weights), 64)).astype(int)
    change = np.abs(mixed - seen.picture).max(axis=2)
    assert change[:, :8].max() <= 1 < change[:, 56:].max()


def test_an_overlay_keeps_the_shape_of_what_the_model_sees() -> None:
    seen = Seen("map", np.zeros((40, 20, 3), np.uint8), np.eye(4, 2))
    assert overlay(seen).size == (150, 300) and overlay(seen, 20).size == (10, 20)
    vision = VisionConfig((16, 48), 8, 8, 1, 1)
    model = random_clip(ClipConfig(vision, TextConfig(8, 1, 1, 5, 20, "cbow"), 4))
    found = Answers(model, Preprocess.of(model.config)).look(NAMES["rocket"], "")
    assert {(x.picture.shape, x.weights.shape) for x in found} == {((16, 48, 3), (2, 6))}
    assert overlay(found[0]).size == (300, 100)


def test_the_matrix_is_of_cosines_and_the_diagonal_wins(answers: Answers) -> None:
    labels = [path.stem.replace("-", " ") for path in EXAMPLES]
    cosines = answers.matrix(EXAMPLES, "\n".join(labels))
    assert cosines.shape == (4, 4) and np.abs(cosines).max() <= 1
    assert (cosines.argmax(axis=1) == np.arange(4)).all()
    shown = html.heat_map(EXAMPLES, labels, cosines)
    numbers = [float(x) for x in re.findall(r">(-?\d\.\d{3})</td>", shown)]
    np.testing.assert_allclose(numbers, cosines.ravel(), atol=5e-4)


@pytest.mark.parametrize(
    ("tab", "given", "said"),
    [
        ("classify", (None, "cat", ""), "expected a picture, got none"),
        ("classify", ("rocket", " \n", ""), "expected labels, one a line, got none"),
        ("classify", ("rocket", "\n".join(map(str, range(MOST_LABELS + 1))), ""), "at most 200"),
        ("classify", ("rocket", "cat\ndog\ncat", ""), "'cat' twice"),
        ("classify", ("rocket", "cat", "no slot"), "exactly one slot"),
        ("classify", ("rocket", "cat", "{0.__class__} {}"), "exactly one slot"),
        ("classify", ("rocket", "word " * 99, ""), "at most 32"),
        ("search", ("", None, 1, "", 5), "got neither"),
        ("search", ("cat", None, 1, "cat", 5), "cancels out"),
        ("look", (None, "cat"), "expected a picture"),
        ("matrix", ([], "cat"), "expected pictures, got none"),
        ("matrix", ([NAMES["rocket"]], ""), "expected captions"),
        ("matrix", ([NAMES["rocket"]] * (MOST_CELLS + 1), "cat"), "at most 12 pictures"),
    ],
)
def test_what_is_wrong_takes_one_line(answers: Answers, tab: str, given: tuple, said: str) -> None:
    given = (NAMES.get(given[0], given[0]) if isinstance(given[0], str) else given[0], *given[1:])
    with pytest.raises(ValueError) as caught:
        getattr(answers, tab)(*given)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_picture_is_named_without_its_folder(answers: Answers, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(EXAMPLES[0].read_bytes()[:200])
    for path, said in ((broken, "'broken.png'"), (tmp_path / "gone.png", "'gone.png'")):
        with pytest.raises(ValueError, match=said) as caught:
            answers.open(path)
        assert str(tmp_path) not in str(caught.value)


def test_without_a_folder_search_says_how_to_give_one(answers: Answers) -> None:
    alone = Answers(answers.model, answers.preprocess)
    with pytest.raises(ValueError, match="--folder PHOTOS"):
        alone.search("cat", None, 1, "", 5)


def test_markup_is_shown_and_not_obeyed(answers: Answers, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    scores = answers.classify(NAMES["rocket"], evil, "").labels
    cosines = np.zeros((1, 1), np.float32)
    shown = [
        label_bars(scores),
        html.problem(evil),
        html.heat_map([NAMES["rocket"]], [evil], cosines),
        html.found_pictures([(str(tmp_path / evil), 0.5)], tmp_path),
        html.overlays([(overlay(answers.look(NAMES["rocket"], evil)[0], 16), evil)]),
    ]
    assert all("&lt;img" in text and evil not in text for text in shown)


def test_opened_pictures_of_the_same_content_are_one(answers: Answers, tmp_path: Path) -> None:
    copy = tmp_path / "other name.png"
    copy.write_bytes(NAMES["rocket"].read_bytes())
    assert isinstance(answers.open(copy), Picture)
    assert answers.open(copy).digest == answers.open(NAMES["rocket"]).digest
    assert answers.open(copy).digest != answers.open(NAMES["bicycle"]).digest


def test_without_gradio_one_line_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = fails(capsys, 1, "demo")
    assert "expected the package gradio, got none; pip install 'jaxclip[demo]'" in said
    assert "--port" in fails(capsys, 2, "demo", "--port", "70000")
    assert "--folder" in fails(capsys, 2, "demo", "--index", "somewhere")
    assert "gradio" not in sys.modules  # no command imports it but a demo that begins
