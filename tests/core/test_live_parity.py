"""Live against the official code, open_clip and transformers, on random weights of tiny models.

Whatever they save loads here and gives what they give; whatever we write loads in them, and gives
the same to the bit. Needs the `parity` extra; tests/core/test_golden.py is what needs none of it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxclip
from experiments.lib.peers import official
from experiments.lib.peers.parity_support import official_module, torchvision_transforms
from jaxclip import convert, parity
from jaxclip.config import ClipConfig
from tests.golden.make_official_golden import GOLDEN, inputs
from tests.support.tolerances import departure, within

pytestmark = pytest.mark.parity
NAMES = list(GOLDEN)
VIT = GOLDEN["official-vit"].config


def saved(model: Any, path: Path) -> Path:
    import torch

    torch.save({k: torch.from_numpy(v) for k, v in official.arrays(model).items()}, path)
    return path


def swap(images: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("name", NAMES)
def test_every_stage_equals_the_official_code(name: str, seed: int, tmp_path: Path) -> None:
    config = GOLDEN[name].config
    images, tokens = inputs(config)
    ours, _ = jaxclip.load(saved(official.model(config, seed), tmp_path / "a.pt"))
    expected = official.ladder(official.in_float64(official.model(config, seed)), images, tokens)
    got = parity.model_rungs(ours, images, tokens)
    assert parity.first_departure(parity.compare(got, expected, within("golden"))) is None
    # the negative twin: weights of another seed
    other = official.ladder(official.in_float64(official.model(config, seed + 9)), images, tokens)
    first = parity.first_departure(parity.compare(got, other, within("golden")))
    assert first is not None and first.name == "image.stem"


@pytest.mark.parametrize("name", NAMES)
def test_the_official_code_loads_what_we_write(name: str, tmp_path: Path) -> None:
    import torch

    config = GOLDEN[name].config
    model = official.model(config, 5)
    source = saved(model, tmp_path / "a.pt")
    convert.convert(source, tmp_path / "a.safetensors")
    convert.convert(tmp_path / "a.safetensors", tmp_path / "b.pt", "openai")
    state = torch.load(tmp_path / "b.pt", weights_only=True)
    images, tokens = inputs(config)
    rebuilt = official_module("model").build_model(state).float()
    expected = official.run(model.float(), images, tokens)
    assert np.array_equal(official.run(rebuilt, images, tokens)["logits"], expected["logits"])


def open_clip_model(config: ClipConfig, quick_gelu: bool, custom_text: bool, seed: int) -> Any:
    import torch

    torchvision_transforms()
    import open_clip  # type: ignore[import-not-found]

    v, t = config.vision, config.text
    vision = {"image_size": v.image_size, "layers": v.layers, "width": v.width}
    if hasattr(v, "patch_size"):
        vision |= {"patch_size": v.patch_size}
    text = {
        "context_length": t.context_length,
        "vocab_size": t.vocab_size,
        "width": t.width,
        "heads": t.heads,
        "layers": t.layers,
    }
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    torch.manual_seed(seed)
    model = kind(config.embed_dim, vision, text, quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                value.normal_(0, 0.1)
    settings = {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text}
    settings |= {"quick_gelu": True} if quick_gelu else {}
    settings |= {"custom_text": True} if custom_text else {}
    return model, {"model_cfg": settings, "preprocess_cfg": {}}


def open_clip_logits(model: Any, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        image, text, scale = model(swap(images), torch.from_numpy(tokens.astype(np.int64)))[:3]
        return (scale * image @ text.T).numpy()


@pytest.mark.parametrize("custom_text", [False, True], ids=["plain", "custom-text"])
@pytest.mark.parametrize("quick_gelu", [True, False], ids=["quick_gelu", "gelu"])
@pytest.mark.parametrize("name", ["official-vit", "official-resnet"])
def test_open_clip_both_ways(
    name: str, quick_gelu: bool, custom_text: bool, tmp_path: Path
) -> None:
    import torch

    config = GOLDEN[name].config
    images, tokens = inputs(config)
    model, settings = open_clip_model(config, quick_gelu, custom_text, seed=4)
    expected = open_clip_logits(model, images, tokens)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    torch.save(model.state_dict(), theirs / "open_clip_pytorch_model.bin")
    (theirs / "open_clip_config.json").write_text(json.dumps(settings))
    ours, _ = jaxclip.load(theirs)
    assert ours.config.activation == ("quick_gelu" if quick_gelu else "gelu")
    assert departure(ours(images, tokens)[0], expected) < within("float32 twice")
    # the negative twin: another model of the same shapes
    other, _ = open_clip_model(config, quick_gelu, custom_text, seed=6)
    assert departure(open_clip_logits(other, images, tokens), expected) > 0.01
    # and back: the weights that we write are those, under those names
    convert.convert(theirs, tmp_path / "ours" / "a.safetensors")
    convert.convert(tmp_path / "ours" / "a.safetensors", tmp_path / "b" / "b.pt", "open_clip")
    written = torch.load(tmp_path / "b" / "b.pt", weights_only=True)
    again, _ = open_clip_model(config, quick_gelu, custom_text, seed=6)
    again.load_state_dict(written, strict=True)
    assert np.array_equal(open_clip_logits(again, images, tokens), expected)


def test_open_clip_s_factory_builds_a_model_from_what_we_write(tmp_path: Path) -> None:
    """From our config file, not only from our weights: a folder by `local-dir:`."""
    torchvision_transforms()
    import open_clip  # type: ignore[import-not-found]

    source = saved(official.model(VIT, 3), tmp_path / "a.pt")
    folder = tmp_path / "folder"
    convert.convert(source, folder / "open_clip_model.safetensors", "open_clip")
    model = open_clip.create_model(f"local-dir:{folder}").eval().float()
    images, tokens = inputs(VIT)
    expected = official.run(official.model(VIT, 3).float(), images, tokens)["logits"]
    assert departure(open_clip_logits(model, images, tokens), expected) < within("float32 twice")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_transformers_both_ways(activation: str, tmp_path: Path) -> None:
    import torch

    torchvision_transforms()
    from transformers import CLIPConfig, CLIPModel  # type: ignore[import-not-found]

    v, t = VIT.vision, VIT.text
    end = t.vocab_size - 1
    common = {"hidden_act": activation, "intermediate_size": 256, "hidden_size": 64}
    text = {
        **common,
        "num_hidden_layers": 12,
        "num_attention_heads": 1,
        "max_position_embeddings": t.context_length,
        "vocab_size": t.vocab_size,
        "eos_token_id": end,
        "bos_token_id": end - 1,
        "pad_token_id": 0,
    }
    vision = {**common, "num_hidden_layers": 12, "num_attention_heads": 1}
    vision |= {"image_size": v.image_size, "patch_size": 8}
    torch.manual_seed(2)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=VIT.embed_dim)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(0, 0.1)
    images, tokens = inputs(VIT)
    ids = torch.from_numpy(tokens.astype(np.int64))

    def logits(model: Any) -> np.ndarray:
        with torch.no_grad():
            return model(input_ids=ids, pixel_values=swap(images)).logits_per_image.numpy()

    expected = logits(model)
    model.save_pretrained(tmp_path / "theirs")
    ours, _ = jaxclip.load(tmp_path / "theirs")
    assert departure(ours(images, tokens)[0], expected) < within("float32 twice")
    convert.convert(tmp_path / "theirs", tmp_path / "a.safetensors")
    convert.convert(tmp_path / "a.safetensors", tmp_path / "ours", "huggingface")
    again = CLIPModel.from_pretrained(tmp_path / "ours").eval()
    assert np.array_equal(logits(again), expected)
    # the negative twin: one bias of one block, in their model (all of them alike would cancel)
    with torch.no_grad():
        again.vision_model.encoder.layers[7].mlp.fc2.bias[3] += 0.1
    assert departure(ours(images, tokens)[0], logits(again)) > 10 * within("float32 twice")


def test_transformers_loads_an_official_model_that_we_converted(tmp_path: Path) -> None:
    import torch

    torchvision_transforms()
    from transformers import CLIPModel  # type: ignore[import-not-found]

    model = official.model(VIT, 8)
    convert.convert(saved(model, tmp_path / "a.pt"), tmp_path / "folder", "huggingface")
    images, tokens = inputs(VIT)
    theirs = CLIPModel.from_pretrained(tmp_path / "folder", dtype=torch.float32).eval()
    with torch.no_grad():
        ids = torch.from_numpy(tokens.astype(np.int64))
        came = theirs(input_ids=ids, pixel_values=swap(images)).logits_per_image.numpy()
    expected = official.run(model.float(), images, tokens)["logits"]
    assert departure(came, expected) < within("float32 twice")
