"""How pictures are prepared: read from the configs of both libraries, and written back."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxclip import convert
from jaxclip.config import CLIP_PICTURES, MEAN, STD, ClipConfig, PictureConfig
from jaxclip.convert.archive import torch_archive
from jaxclip.convert.layouts import pictures
from jaxclip.data.crops import random_crop, reduced_crop
from jaxclip.images.preprocess import Preprocess
from jaxclip.training.pixels import normalize_image
from tests.support import foreign
from tests.support.pictures import encoded

HALF = (0.5, 0.5, 0.5)
SIGLIP = PictureConfig(HALF, HALF, resize="squash", steps="transformers")
SIGLIP_FILE = {  # as of google/siglip-base-patch16-224
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "SiglipProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}


def read(data: dict[str, Any], size: int = 224) -> PictureConfig:
    return pictures.from_hugging_face(data, size, pictures.PREPROCESSOR_NAME, "CLIP")


def test_settings_of_siglip_are_read() -> None:
    assert read(SIGLIP_FILE) == SIGLIP
    without = {"image_processor_type": "SiglipImageProcessor", "do_convert_rgb": None}
    assert read(without) == SIGLIP, "what a file leaves out is the library's default"
    second = {**SIGLIP_FILE, "resample": 2}  # as of google/siglip2-base-patch16-224
    assert read(second) == dataclasses.replace(SIGLIP, interpolation="bilinear")


def test_settings_of_clip_are_the_released_pipeline() -> None:
    written = pictures.to_hugging_face(CLIP_PICTURES, 224, "CLIP")
    assert read(written) == read({}) == CLIP_PICTURES
    other = read({**written, "image_mean": [0.4, 0.5, 0.6]})
    assert other == PictureConfig((0.4, 0.5, 0.6), STD, steps="transformers")


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_written_settings_are_read_as_they_were(kind: Any, resize: Any, interpolation: Any) -> None:
    said = PictureConfig(HALF, STD, interpolation, resize, steps="transformers")
    assert read(pictures.to_hugging_face(said, 96, kind), 96) == said
    native = dataclasses.replace(said, steps="openai")
    assert pictures.from_open_clip(pictures.to_open_clip(native)) == native


def test_a_border_is_open_clips_alone() -> None:
    border = PictureConfig(resize="longest", fill=127)
    assert pictures.from_open_clip(pictures.to_open_clip(border)) == border
    with pytest.raises(ValueError, match="no image processor of transformers"):
        pictures.to_hugging_face(border, 96, "CLIP")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor"),
        ({**SIGLIP_FILE, "size": {"height": 256, "width": 256}}, "size"),
        ({**SIGLIP_FILE, "size": {"shortest_edge": 224}}, "do_center_crop"),
        ({**SIGLIP_FILE, "image_std": [0.5, 0.5, 0]}, "std"),
        ({"size": {"longest_edge": 224}}, "size"),
    ],
)
def test_settings_that_make_other_pixels_are_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(data)


def test_a_model_brings_its_preprocessing(tmp_path: Path) -> None:
    """From open_clip's config into ours, and through its JSON."""
    config = foreign.config(activation="gelu")
    file = tmp_path / "open_clip_model.bin"
    torch_archive.write(file, foreign.openai(config, buffers=False))
    described = foreign.open_clip_config(config)
    described["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    foreign.write_json(tmp_path / "open_clip_config.json", described)
    loaded = convert.load(file)
    assert loaded.config.pictures == dataclasses.replace(SIGLIP, steps="openai")
    assert ClipConfig.from_json(loaded.config.to_json()) == loaded.config


def test_the_default_is_left_out_of_the_config() -> None:
    assert "pictures" not in foreign.VIT.to_json()
    other = dataclasses.replace(foreign.VIT, pictures=SIGLIP)
    assert ClipConfig.from_json(other.to_json()) == other != foreign.VIT


# What uses it -------------------------------------------------------------------------------------


def jpeg(wide: int, high: int) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (high, wide, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise).resize((wide, high)), "JPEG")


def test_training_sees_the_pictures_of_evaluation() -> None:
    """A squashed model has no random crop: the two are equal but for the last bit."""
    content, rng = jpeg(40, 24), np.random.default_rng(0)
    for how in (SIGLIP, PictureConfig(interpolation="bilinear", resize="longest", fill=200)):
        config = dataclasses.replace(foreign.VIT, pictures=how)
        expected = Preprocess.of(config).safe(Image.open(io.BytesIO(content)))
        square = random_crop(content, 20, rng, how)
        got = normalize_image({"image": square[None]}, None, pictures=how)[0]
        np.testing.assert_allclose(got, expected, atol=1e-6)
        wrong = normalize_image({"image": square[None]}, None)[0]
        if how.mean == HALF:
            assert np.abs(np.asarray(wrong) - expected).max() > 0.05, "of another model"


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_decoding_at_less_than_the_size_keeps_the_filter(resize: Any) -> None:
    smooth = np.linspace(0, 255, 640, dtype=np.uint8)
    content = encoded(Image.fromarray(np.tile(smooth[None, :, None], (480, 1, 3))), "JPEG")
    for interpolation in ("bicubic", "bilinear"):
        how = PictureConfig(MEAN, STD, interpolation, resize)  # type: ignore[arg-type]
        full, reduced = (
            make(content, 48, np.random.default_rng(1), how).astype(int)
            for make in (random_crop, reduced_crop)
        )
        assert np.abs(full - reduced).max() <= 6
