"""Models of open_clip and transformers, small, against those libraries: out of their own files.

Every config of open_clip whose towers we have, every class of transformers: features, logits and
hidden states within four times the library's own float32 error of its float64, every tensor the
same to the bit on the way back. Each mistake that a converter makes easily departs by far more.
Needs the `parity` extra.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxclip
from jaxclip import convert, parity
from jaxclip.config import ClipConfig
from jaxclip.convert.layouts.compare import config_faults
from jaxclip.models import text
from tests.golden.open_clip_tall import FOLDER, SIZE, make_pictures
from tests.support.tolerances import departure, within

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("quick_compiling")]

try:
    from experiments.lib.peers import model_cases, model_rows, model_shapes
    from experiments.lib.peers.model_peers import (
        inputs,
        reduced_timm,
        run_open_clip,
        saved_peer,
        without_decoder,
    )

    CASES = {
        case.name: case
        for case in [
            *model_cases.open_clip_cases(),
            *model_cases.not_square_cases(),
            *model_cases.hugging_face_cases(),
        ]
    }
    LOADS, REFUSED = model_cases.loadable()
except (ImportError, RuntimeError, pytest.skip.Exception):  # skipped: conftest.py says why
    CASES, LOADS, REFUSED = {"needs the extra": None}, {}, {}  # type: ignore[dict-item]


def measured(case: Any, folder: Path) -> tuple[dict[str, Any], convert.Loaded, Any]:
    """`model_rows.measure` with timm's towers small, and the way back through our own file."""
    if case.settings is None:
        return model_rows.measure(case, folder)
    with reduced_timm(case.settings):
        return model_rows.measure(case, folder)


def go_round(case: Any, folder: Path) -> None:
    """Theirs, ours, theirs: every tensor and what the config means."""
    layout: Any = model_rows.layout_of(convert.load(folder))
    ours = folder / "round" / "ours.safetensors"
    convert.convert(folder, ours)
    target = folder / "back"
    target = target if layout == "huggingface" else target / "open_clip_model.safetensors"
    convert.convert(ours, target, layout)
    back, first = convert.read(target), dict(without_decoder(convert.read(folder).items()))
    assert back.keys() == first.keys()
    assert all(np.array_equal(back[name], first[name]) for name in first)
    assert not config_faults(convert.load(folder).config, convert.load(target).config)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_model_equals_its_library(case: Any, tmp_path: Path) -> None:
    row, _, _ = measured(case, tmp_path)
    assert row["tensors unequal"] == 0
    assert row["parameters"] == row["parameters of the library"]
    far = {
        name: stage for name, stage in row["stages"].items() if stage["error"] > stage["allowed"]
    }
    assert not far
    if case.settings is None:
        go_round(case, tmp_path)
    else:
        with reduced_timm(case.settings):
            go_round(case, tmp_path)


# Mistakes that must be noticed --------------------------------------------------------------------

WRONG: dict[str, tuple[str, str, dict[str, Any]]] = {
    "heads of 64 for H/14": ("ViT-H-14", "vision", {"heads": 1}),
    "epsilon 1e-6 for 1e-5": ("ViT-H-14", "vision", {"layer_norm_epsilon": 1e-6}),
    "epsilon 1e-5 for 1e-6": ("ViT-B-16-SigLIP", "text", {"layer_norm_epsilon": 1e-5}),
    "causal for SigLIP's text": ("ViT-B-16-SigLIP", "text", {"causal": True}),
    "not causal for CLIP's text": ("ViT-H-14", "text", {"causal": False}),
    "pooled at the largest id": ("ViT-B-16-SigLIP", "text", {"pooling": "largest"}),
    "largest id for the first 2": (
        "MetaClip2Model eos_token_id 2",
        "text",
        {"pooling": "largest", "end_token": None},
    ),
    "the first 2 for the largest id": (
        "CLIPModel eos_token_id 2",
        "text",
        {"pooling": "end", "end_token": 2},
    ),
    "class token for the mean": ("ViT-L-14-CLIPA", "vision", {"pooling": "class"}),
    "norm before the mean": ("ViT-L-14-CLIPA", "vision", {"norm_after_pooling": False}),
    "GELU for QuickGELU": ("ViT-H-14-quickgelu", "text", {"own_activation": "gelu"}),
    "QuickGELU for GELU": ("ViT-H-14", "vision", {"own_activation": "quick_gelu"}),
    "tanh for exact GELU": ("ViT-B-16-SigLIP", "vision", {"own_activation": "gelu_tanh"}),
    "exact GELU for tanh": ("ViT-B-16-SigLIP2", "text", {"own_activation": "gelu"}),
    "16 heads for CoCa's 8": ("coca_ViT-B-32", "vision", {"pool_heads": 16}),
    "not causal for CoCa's text": ("coca_ViT-B-32", "text", {"causal": False}),
}


def case_of(model: str) -> Any:
    """The case that stands for a model, also where another one gave it its name."""
    return next(case for case in CASES.values() if model in (case.name, *case.models))


@pytest.mark.parametrize("model, tower, fields", WRONG.values(), ids=WRONG.keys())
def test_a_mistake_in_the_config_departs(
    model: str, tower: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    case = case_of(model)
    row, loaded, double = measured(case, tmp_path)
    assert row["holds"] and isinstance(loaded.config, ClipConfig)
    config = loaded.config
    changed = dataclasses.replace(getattr(config, tower), **fields)
    wrong = loaded._replace(config=dataclasses.replace(config, **{tower: changed}))
    got = model_rows.run_ours(wrong, *inputs(config.vision.image_size, config.text))
    stage = f"{'image' if tower == 'vision' else tower}_features"
    error = np.abs(got[stage] - double[stage]).max()
    # NaN where a text lacks the end token: no number either
    assert not error <= 3 * row["stages"][stage]["allowed"], error


def test_ratio_4_for_g_14_does_not_fit(tmp_path: Path) -> None:
    case = case_of("ViT-g-14")
    case.make().save(tmp_path)
    path = tmp_path / "open_clip_config.json"
    settings = json.loads(path.read_text())
    settings["model_cfg"]["vision_cfg"]["mlp_ratio"] = 4.0
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"does not describe the weights.*c_fc"):
        convert.load(tmp_path)


def test_coca_s_padding_is_hidden_one_position_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def where_it_lies(tokens: Any) -> Any:
        visible = np.pad(tokens != 0, ((0, 0), (0, 1)), constant_values=True)
        return visible[:, None, None]

    row, loaded, double = measured(case_of("coca_ViT-B-32"), tmp_path)
    assert row["holds"]
    given = inputs(loaded.config.vision.image_size, loaded.config.text)
    model, _ = jaxclip.load(loaded, precision="highest")
    monkeypatch.setattr(text, "visible_keys", lambda tokens: where_it_lies(given[1]))
    got = parity.model_rungs(model, *given)  # which uses nothing that was traced before
    error = np.abs(got["text.features"] - double["text_features"]).max()
    assert error > 3 * row["stages"]["text_features"]["allowed"]


def test_coca_s_first_query_stands_for_the_picture(tmp_path: Path) -> None:
    row, loaded, double = measured(case_of("coca_ViT-B-32"), tmp_path)
    flat = {**loaded.flat}
    flat["visual.attn_pool.query"] = np.roll(flat["visual.attn_pool.query"], 1, axis=0)
    given = inputs(loaded.config.vision.image_size, loaded.config.text)
    got = model_rows.run_ours(loaded._replace(flat=flat), *given)
    error = np.abs(got["image_features"] - double["image_features"]).max()
    assert error > 3 * row["stages"]["image_features"]["allowed"]


def test_open_clip_has_coca_s_half_as_it_is_written(tmp_path: Path) -> None:
    case = case_of("coca_ViT-B-32")
    _, loaded, double = measured(case, tmp_path)
    assert loaded.notes["left_out"] == "CoCa's text decoder"
    target = tmp_path / "half" / "open_clip_model.safetensors"
    convert.convert(tmp_path, target, "open_clip")
    half = saved_peer(target.parent).model.double()
    got = run_open_clip(half, *inputs(loaded.config.vision.image_size, loaded.config.text))
    for name in double:
        np.testing.assert_allclose(got[name], double[name], rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADS)
def test_names_and_shapes_at_full_size_are_the_library_s(name: str) -> None:
    assert model_shapes.theirs(LOADS[name]) == model_shapes.ours(LOADS[name])


def test_open_clip_s_configs_are_counted() -> None:
    assert (len(LOADS), len(LOADS) + len(REFUSED)) == (84, 144)
    assert all("which jaxclip does not have" in reason for reason in REFUSED.values())
    wanted = ("EVA", "FastViT", "PE-Core", "ViTamin", "ConvNeXt", "nllb", "xlm-roberta")
    assert all(any(word in reason for reason in REFUSED.values()) for word in wanted)


# Pictures that are not square ---------------------------------------------------------------------


def features_of_open_clip(folder: Path, picture: Any, **options: Any) -> tuple[Any, Any]:
    """(pixels [h, w, c], image features in float64) of open_clip for a folder and its transform."""
    import open_clip
    import torch

    made = open_clip.create_model_and_transforms(f"local-dir:{folder}", **options)
    model, transform = made[0].double().eval(), made[2]
    pixels = transform(picture)
    with torch.no_grad():
        features = model.encode_image(pixels[None].double()).numpy()
    return pixels.numpy().transpose(1, 2, 0), features


def test_open_clip_loads_what_is_written_for_it(tmp_path: Path) -> None:
    """The folder that we write: its model, and the transform that it makes for it."""
    target = tmp_path / "open_clip_model.safetensors"
    convert.convert(FOLDER, target, "open_clip")
    model, preprocess = jaxclip.load(target, precision="highest")
    for picture in make_pictures():
        pixels, features = features_of_open_clip(tmp_path, picture)
        assert pixels.shape == (*SIZE, 3)
        np.testing.assert_array_equal(preprocess(picture), pixels)
        got = np.asarray(model.encode_image(pixels[None]))
        assert departure(got, features) < within("golden")


def test_a_square_model_at_height_and_width_is_open_clip_s(tmp_path: Path) -> None:
    """Its `force_image_size` and our `image_size`; the other way round departs."""
    case = case_of("ViT-S-16")
    case.make().save(tmp_path)
    size, picture = (64, 112), make_pictures()[0]
    pixels, features = features_of_open_clip(tmp_path, picture, force_image_size=size)
    model, preprocess = jaxclip.load(tmp_path, image_size=size, precision="highest")
    np.testing.assert_array_equal(preprocess(picture), pixels)
    far = departure(np.asarray(model.encode_image(pixels[None])), features)
    assert far < within("golden")
    turned, _ = jaxclip.load(tmp_path, image_size=size[::-1], precision="highest")
    wrong = np.asarray(turned.encode_image(pixels.swapaxes(0, 1)[None]))
    assert departure(wrong, features) > 100 * within("golden")


def test_transformers_interpolates_to_height_and_width_the_same(tmp_path: Path) -> None:
    """Its towers take such pictures with `interpolate_pos_encoding`, though no such config."""
    import torch

    peer = case_of("CLIPModel eos_token_id 2").make()
    peer.save(tmp_path)
    pixels = np.random.default_rng(0).standard_normal((2, 70, 28, 3), np.float32)
    given = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).double()
    with torch.no_grad():
        out = peer.model.double().get_image_features(given, interpolate_pos_encoding=True)
    features = out.pooler_output.numpy()
    for convention, holds in (("huggingface", True), ("open_clip", False)):
        oblong = convert.at_size(convert.load(tmp_path), (70, 28), convention)  # type: ignore[arg-type]
        model, _ = jaxclip.load(oblong, precision="highest")
        far = departure(np.asarray(model.encode_image(pixels)), features)
        assert (far < within("golden")) is holds, far
