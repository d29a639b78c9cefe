"""Every variant trains: gradients, starting values, a few steps; what training refuses."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxclip import checkpoint, parity, reference
from jaxclip.doctor.knobs import right_walk
from jaxclip.evaluation.attention import attention_map
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip, parameters
from jaxclip.training import from_recipe
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh
from jaxclip.training.sigmoid import sigmoid_loss
from tests.support import variants
from tests.support.tolerances import within, worst
from tests.support.variants import (
    SIGLIP_PICTURES,
    SIGLIP_TEXTS,
    VARIANTS,
    inputs,
    model,
    plain_gradient,
)


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize(
    "name",
    [
        "SigLIP",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("wide heads", "mean", "end token", "oblong patches")
        ),
    ],
)
def test_the_gradient_is_that_of_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`jax.grad` of the reference with `np` replaced by `jax.numpy`, in float64."""
    config, (images, tokens) = VARIANTS[name], inputs(name)
    towers = (config.vision, config.text)
    vision, text = (parity.reference_options(tower, config.activation) for tower in towers)

    def value(flat: dict[str, Any]) -> Any:
        params = checkpoint.nest(flat)
        features = (
            reference.vision_transformer(images, params["visual"], **vision),
            reference.text_transformer(tokens, params["text"], **text),
        )
        embeds = (reference.l2_normalize(each) for each in features)
        temperature = [flat[name] for name in ("logit_scale", "logit_bias") if name in flat]
        return (sigmoid_loss if config.logit_bias else contrastive_loss)(*embeds, *temperature)

    monkeypatch.setattr(reference, "np", jax.numpy)
    with jax.enable_x64(True):
        flat = {name: jax.numpy.asarray(x) for name, x in variants.flat(config).items()}
        want = {name: np.asarray(x) for name, x in jax.jit(jax.grad(value))(flat).items()}
    assert worst(plain_gradient(name), want) < within("gradient float64")


@pytest.mark.usefixtures("quick_compiling")
def test_a_new_siglip_starts_as_published() -> None:
    """big_vision: models/vit.py, models/proj/image_text/text_transformer.py."""
    config = variants.config(
        SIGLIP_PICTURES | {"width": 96, "mlp_width": 200},
        SIGLIP_TEXTS | {"width": 64, "vocab_size": 999},
        logit_bias=True,
    )
    new = parameters.to_flat(clip.create(config, 0))
    block, pool = "visual.transformer.resblocks.1", "visual.attnpool"
    uniform = {  # Xavier's bound, of each of query, key and value alone
        f"{block}.attn.in_proj_kernel": (6 / (96 + 96)) ** 0.5,
        f"{block}.attn.out_proj.kernel": (6 / (96 + 96)) ** 0.5,
        f"{block}.mlp.c_fc.kernel": (6 / (96 + 200)) ** 0.5,
        f"{pool}.attn.in_proj_kernel": (6 / (96 + 96)) ** 0.5,
        f"{pool}.mlp.c_proj.kernel": (6 / (96 + 200)) ** 0.5,
        "text.transformer.resblocks.0.mlp.c_fc.kernel": (6 / (64 + 256)) ** 0.5,
    }
    for name, bound in uniform.items():
        assert 0.98 * bound < np.abs(new[name]).max() <= bound, name
        assert new[name].std() == pytest.approx(bound / 3**0.5, rel=0.05), name
    normal = {
        "visual.conv1.kernel": 75**-0.5,
        "visual.positional_embedding": 96**-0.5,
        "text.token_embedding.embedding": 64**-0.5,
        "text.positional_embedding": 64**-0.5,
        "text.text_projection.kernel": 64**-0.5,
        f"{block}.mlp.c_fc.bias": 1e-6,
    }
    for name, std in normal.items():
        assert new[name].std() == pytest.approx(std, rel=0.1), name
    assert np.abs(new[f"{pool}.probe"]).max() < (6 / 97) ** 0.5
    assert not new[f"{block}.attn.out_proj.bias"].any() and not new["visual.conv1.bias"].any()
    assert new["logit_bias"] == -10 and new["logit_scale"] == pytest.approx(np.log(10))


@pytest.mark.usefixtures("quick_compiling")
def test_other_variants_start_as_the_released_models() -> None:
    new = parameters.to_flat(clip.create(VARIANTS["mean"], 0))
    kernels = [new[f"visual.transformer.resblocks.{i}.attn.in_proj_kernel"] for i in range(3)]
    assert np.std(kernels) == pytest.approx(24**-0.5, rel=0.05)
    assert np.abs(kernels).max() > 3 * 24**-0.5  # no uniform distribution


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize("name", ["SigLIP", "end token"])
def test_a_variant_learns(name: str) -> None:
    recipe = Recipe(
        steps=12,
        batch_size=8,
        learning_rate=3e-3,
        warmup=1,
        text_length=13,
        model=VARIANTS[name],
    )
    mesh = data_mesh(jax.devices()[:1])
    state = from_recipe.first_state(recipe, mesh)
    step = from_recipe.compiled_step(recipe, Execution(), mesh, lambda batch, key: batch["image"])
    images, tokens = variants.batch(recipe.model, n=8)
    batch = {"image": images.astype(np.float32), "tokens": tokens}
    losses = []
    for _ in range(recipe.steps):
        state, metrics = step(state, batch, state.key)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_a_text_tower_that_reads_padding_needs_whole_texts() -> None:
    with pytest.raises(ValueError, match="text_length: expected 13, the model's context length"):
        Recipe(text_length=12, model=VARIANTS["SigLIP"])
    tokens = inputs("SigLIP")[1]
    with pytest.raises(ValueError, match=r"expected tokens \[n, 13\] with padding"):
        model("SigLIP").encode_text(tokens[:, :12])


def test_a_text_without_its_end_is_refused() -> None:
    tokens = np.where(inputs("end token")[1] == 3, 5, inputs("end token")[1])
    with pytest.raises(ValueError, match="expected the end token 3 in every text"):
        model("end token").encode_text(tokens)
    features = jax.jit(lambda tokens: model("end token").encode_text(tokens))(tokens[:1])
    assert np.isnan(features).all()  # inside of jit no value is known


def test_rooms_that_know_the_released_towers_only_refuse_others() -> None:
    with pytest.raises(ValueError, match=r"doctor: .* got text.causal False"):
        right_walk(VARIANTS["not causal"])
    assert right_walk(VARIANTS["narrow MLP"])
    with pytest.raises(ValueError, match="pools its class token, got pooling mean"):
        attention_map(model("mean"), inputs("mean")[0])
