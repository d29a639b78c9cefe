"""Stable Diffusion XL's conditioning from its two text encoders, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxclip
from tests.support.tolerances import departure, within

pytestmark = pytest.mark.parity
SIZES = {"num_hidden_layers": 3, "vocab_size": 49408, "max_position_embeddings": 77}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """(CLIPTextModel, CLIPTextModelWithProjection, the folder of both), reduced and random."""
    from experiments.lib.peers.parity_support import torchvision_transforms

    torchvision_transforms()  # which transformers imports
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("stable-diffusion-xl")
    torch.manual_seed(0)
    first = CLIPTextConfig(hidden_size=64, intermediate_size=256, num_attention_heads=4, **SIZES)
    second = CLIPTextConfig(
        hidden_size=80,
        intermediate_size=320,
        num_attention_heads=5,
        projection_dim=80,
        hidden_act="gelu",
        **SIZES,
    )
    models = CLIPTextModel(first).eval(), CLIPTextModelWithProjection(second).eval()
    for model, name in zip(models, ("text_encoder", "text_encoder_2"), strict=True):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5 if parameter.ndim > 1 else 1)  # else layers change little
        model.save_pretrained(folder / name)
    return *models, folder


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """The ids of both encoders: padded with the end token, and with 0."""
    ids = jaxclip.tokenize(["a rocket", "two red foxes in the snow, at night"])
    after_end = np.arange(77) > ids.argmax(1)[:, None]
    return np.where(after_end, ids.max(), ids), ids


def right(encoders: tuple[Any, Any, Path]) -> tuple[np.ndarray, np.ndarray]:
    """What the pipeline of diffusers takes, in float64."""
    import torch

    found = [
        model.double()(torch.from_numpy(ids).long(), output_hidden_states=True)
        for model, ids in zip(encoders[:2], tokens(), strict=True)
    ]
    sequence = torch.cat([each.hidden_states[-2] for each in found], dim=-1)
    return sequence.detach().numpy(), found[1].text_embeds.detach().numpy()


def test_both_inputs_equal_those_of_transformers(encoders: tuple[Any, Any, Path]) -> None:
    names = ("text_encoder", "text_encoder_2")
    towers = [jaxclip.load(encoders[2] / name, tower="text")[0] for name in names]
    states = [t.hidden_states(ids) for t, ids in zip(towers, tokens(), strict=True)]
    sequence, pooled = right(encoders)
    got = np.concatenate([each[-2] for each in states], axis=-1)
    assert departure(got, sequence) < within("block")
    assert departure(towers[1].encode_text(tokens()[1]), pooled) < within("features")
    for wrong in (-1, -3):  # another layer
        assert departure(np.concatenate([x[wrong] for x in states], axis=-1), sequence) > 0.01
    padded = towers[0].hidden_states(tokens()[1])[-2]  # padded as for the other encoder
    assert departure(padded, sequence[..., :64]) > 0.01


def test_the_last_state_after_its_norm_is_version_1_s(encoders: tuple[Any, Any, Path]) -> None:
    import torch

    tower = jaxclip.load(encoders[2] / "text_encoder", tower="text")[0]
    ids = tokens()[0]
    with torch.no_grad():
        want = encoders[0].double()(torch.from_numpy(ids).long())
    got = tower.text.ln_final(tower.hidden_states(ids)[-1])
    assert departure(got, want.last_hidden_state.numpy()) < within("block")
    assert departure(tower.encode_text(ids), want.pooler_output.numpy()) < within("pooled")
