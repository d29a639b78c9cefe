"""The ladder names the first stage that departs, and holds where there is nothing to find."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclip import checkpoint, hardware, parity
from jaxclip.config import RELEASED, ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.hardware import memory
from jaxclip.models import clip, parameters, resnet
from tests.support import tiny
from tests.support.variants import with_epsilon

TEXT = TextConfig(16, layers=12, heads=2, context_length=13, vocab_size=101)
VIT = ClipConfig(VisionConfig(20, 5, 24, 12, 3), TEXT, 7)
BAG = dataclasses.replace(VIT, text=dataclasses.replace(TEXT, kind="cbow"))
RESNET = ClipConfig(ResNetConfig(96, 16, (1, 2, 1, 1)), TEXT, 7)
DEEP = ClipConfig(ResNetConfig(96, 16, (1, 1, 12, 1)), TEXT, 7)  # narrow and deep, as RN101
CASES = {
    "vit": (VIT, tiny.params(), 20),
    "bag of words": (BAG, tiny.params(text="cbow"), 20),
    "resnet": (RESNET, {**tiny.params(), "visual": tiny.resnet()}, 96),
    "deep resnet": (DEEP, {**tiny.params(), "visual": tiny.resnet(layers=DEEP.vision.layers)}, 96),
}


@functools.cache
def judge(case: str) -> tuple[parity.Rungs, dict[str, float]]:
    """(the reference's rungs in float64, what every stage may depart by) of a tiny random model."""
    config, params, size = CASES[case]
    flat = {name: np.float32(value) for name, value in checkpoint.flatten(params).items()}
    return parity.judge(flat, config, *inputs(size))


def test_the_run_for_the_bounds_is_in_float32_throughout() -> None:
    config, params, size = CASES["resnet"]
    flat = {name: np.float32(value) for name, value in checkpoint.flatten(params).items()}
    single = parity.reference_rungs(flat, config, *inputs(size), np.float32)
    assert {single[name].dtype for name in single} == {np.dtype(np.float32), np.dtype(np.int32)}


def inputs(size: int) -> tuple[np.ndarray, np.ndarray]:
    images, tokens = tiny.batch(image_size=size)
    return images.astype(np.float32), tokens


def departure(case: str, flat: Any = None, config: ClipConfig | None = None) -> str | None:
    """The first stage at which the Flax model of a case, altered or not, leaves the reference."""
    own, params, size = CASES[case]
    config, flat = config or own, flat or checkpoint.flatten(params)
    got = parity.model_rungs(parameters.from_flat(flat, clip.abstract(config)), *inputs(size))
    rung = parity.first_departure(parity.compare(got, *judge(case)))
    return rung and rung.name


@pytest.mark.parametrize("case", CASES)
def test_every_rung_of_a_faithful_model_holds(case: str) -> None:
    config, params, size = CASES[case]
    model = parameters.from_flat(checkpoint.flatten(params), clip.abstract(config))
    got, (expected, bounds) = parity.model_rungs(model, *inputs(size)), judge(case)
    rungs = parity.compare(got, expected, bounds)
    assert parity.first_departure(rungs) is None
    shapes = parity.rung_shapes(config, *inputs(size))
    assert shapes == {n: x.shape for n, x in got.items() if n not in ("pixels", "tokens")}
    names = [rung.name for rung in rungs]
    assert names[:2] == ["tokens", "pixels"] and names[-1] == "logits"
    assert set(got) <= set(expected)  # no stage that nobody judges
    stages = {"vit": "image.block.11", "bag of words": "text.pooled"}
    assert (
        stages.get(case, "image.layer4") in names
        and "text.features" in names
        and "image.stem" in names
    )


def test_the_first_rung_that_departs_is_named() -> None:
    flat = checkpoint.flatten(CASES["vit"][1])
    bias = "visual.transformer.resblocks.7.mlp.c_proj.bias"
    assert departure("vit", {**flat, bias: flat[bias] + 0.01}) == "image.block.7"
    assert departure("vit") is None


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_another_activation_departs_in_the_first_block(activation: Any) -> None:
    other = dataclasses.replace(CASES["vit"][0], activation=activation)
    assert departure("vit", config=other) == "image.block.0"


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_layers_in_the_order_of_their_names_depart(tower: str) -> None:
    flat = dict(checkpoint.flatten(CASES["vit"][1]))
    start = f"{tower}.transformer.resblocks."
    order = {str(i): name for i, name in enumerate(sorted(map(str, range(12))))}
    for path in [path for path in flat if path.startswith(start)]:
        number, _, rest = path.removeprefix(start).partition(".")
        flat[path] = CASES["vit"][1][tower]["transformer"]["resblocks"][order[number]]
        for key in rest.split("."):
            flat[path] = flat[path][key]
    name = {"visual": "image", "text": "text"}[tower]
    assert departure("vit", flat) == f"{name}.block.2"


def test_another_epsilon_departs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert departure("vit", config=with_epsilon(VIT, 1e-6)) == "image.stem"
    monkeypatch.setattr(resnet, "BATCH_NORM_EPSILON", 1e-3)
    assert departure("resnet") == "image.stem"


def test_a_fault_deep_in_a_resnet_departs() -> None:
    flat = checkpoint.flatten(CASES["deep resnet"][1])
    variance = "visual.layer3.11.bn2.var"
    assert departure("deep resnet", {**flat, variance: flat[variance] + 1e-3}) == "image.layer3"
    query = "visual.attnpool.q_proj.kernel"
    assert departure("deep resnet", {**flat, query: flat[query] * 1.001}) == "image.pooled"


def test_a_bias_of_the_logits_is_judged() -> None:
    config = dataclasses.replace(VIT, logit_bias=True)
    flat = {**checkpoint.flatten(CASES["vit"][1]), "logit_bias": np.float32(-3.5)}
    plain = parity.reference_rungs(checkpoint.flatten(CASES["vit"][1]), VIT, *inputs(20))
    judged = parity.reference_rungs(flat, config, *inputs(20))
    assert np.allclose(judged["logits"], plain["logits"] - 3.5, atol=1e-12)
    got = parity.model_rungs(parameters.from_flat(flat, clip.abstract(config)), *inputs(20))
    assert parity.first_departure(parity.compare(got, judged, judge("vit")[1])) is None
    other = parity.first_departure(parity.compare(got, plain, judge("vit")[1]))
    assert other is not None and other.name == "logits"


def deep_resnet(name: str, seed: int) -> dict[str, np.ndarray]:
    """A whole random model in the shape of a released one, its features far from balanced."""
    config = RELEASED[name]
    v, t = config.vision, config.text
    assert isinstance(v, ResNetConfig)
    params = tiny.params(
        seed, vision_layers=1, text_width=t.width, text_layers=1, vocab=101, embed=config.embed_dim
    )
    params["visual"] = tiny.resnet(
        seed, width=v.width, layers=v.layers, image_size=v.image_size, embed=config.embed_dim
    )
    return {k: np.float32(x) for k, x in checkpoint.flatten(params).items()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed"), [("RN101", 0), ("RN101", 1), ("RN50x16", 0)])
def test_a_sound_resnet_of_full_size_holds(name: str, seed: int) -> None:
    config = RELEASED[name]
    text = TextConfig(config.text.width, 1, 8, context_length=13, vocab_size=101)
    config = dataclasses.replace(config, text=text)
    flat = deep_resnet(name, seed)
    model = parameters.from_flat(flat, hardware.for_cpu(clip.abstract(config)), memory.put)
    images, tokens = tiny.batch(n=1, image_size=config.vision.image_size)
    got = parity.model_rungs(model, images.astype(np.float32), tokens)
    double, bounds = parity.judge(flat, config, images.astype(np.float32), tokens)
    rungs = parity.compare(got, double, bounds)
    assert parity.first_departure(rungs) is None, rungs


def test_tokens_must_be_equal_and_shapes_too() -> None:
    one = {"tokens": np.array([[1, 2]]), "logits": np.ones((1, 1))}
    other = {**one, "tokens": np.array([[1, 3]])}
    first = parity.first_departure(parity.compare(one, other, 0.9))
    assert first is not None and first.name == "tokens"
    with pytest.raises(ValueError, match=r"logits: expected shape \(2, 1\)"):
        parity.compare(one, {"logits": np.ones((2, 1))}, 1.0)
    with pytest.raises(ValueError, match="share none"):
        parity.compare(one, {"elsewhere": np.ones(1)}, 1.0)


def test_a_bound_follows_from_what_float32_does() -> None:
    double = {"tokens": np.ones((1, 2), np.int32), "image.pooled": np.array([2.0, 1.0])}
    single = {**double, "image.pooled": np.array([2.0, 1.0 + 2e-5])}  # 1e-5 of the largest
    bounds = parity.bounds(single, double)
    assert bounds["image.pooled"] == pytest.approx(4 * 1e-5 + 2e-5)
    assert bounds["tokens"] == pytest.approx(parity.FLOOR)
    got = {**double, "image.pooled": np.array([2.0, 1.0 + 1.12e-4])}  # 5.6e-5, RN101's
    assert parity.first_departure(parity.compare(got, double, bounds)) is None
    strict = dict.fromkeys(double, parity.allowed(0.0))
    assert parity.first_departure(parity.compare(got, double, strict)) is not None


def test_other_signs_of_an_error_before_sharp_attention_are_allowed_for() -> None:
    """One head is at a tie: an error of layer4 departs much or not at all, by its signs."""
    config, params, size = CASES["resnet"]
    pool = {**params["visual"]["attnpool"]}
    for name in ("q_proj", "k_proj"):
        pool[name] = {**pool[name], "kernel": 30 * pool[name]["kernel"]}
    flat = checkpoint.flatten({**params, "visual": {**params["visual"], "attnpool": pool}})
    double = parity.reference_rungs(flat, config, *inputs(size))
    layer4 = double["image.layer4"]
    error = 1e-6 * np.abs(layer4)
    single = {**double, "image.layer4": layer4 + error}
    more = parity.perturb_pool(flat, config, single, double)
    plain, wide = parity.bounds(single, double), parity.bounds(single, double, more)
    assert plain["image.pooled"] == parity.FLOOR < wide["image.pooled"]
    rungs = parity.perturb_pool(flat, config, {"image.layer4": layer4 - error}, double, draws=1)[0]
    assert parity.first_departure(parity.compare(rungs, double, wide)) is None
    assert wide["image.layer4"] == plain["image.layer4"]
    assert parity.perturb_pool(flat, VIT, single, double) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_float32_cannot_hold_does_not_pass(value: float) -> None:
    double, single = {"logits": np.ones(2)}, {"logits": np.array([1.0, value])}
    assert parity.bounds(single, double) == {"logits": parity.FLOOR}
    for got, expected in ((single, double), (double, single), (single, single)):
        rungs = parity.compare(got, expected, parity.bounds(single, expected))
        assert parity.first_departure(rungs) is not None


def test_what_is_not_finite_departs() -> None:
    got = {"logits": np.array([np.nan])}
    assert parity.first_departure(parity.compare(got, {"logits": np.ones(1)}, 1.0)) is not None


def test_a_recorded_ladder_comes_back(tmp_path: Path) -> None:
    rungs: dict[str, Any] = {"tokens": np.eye(2, dtype=np.int32), "pixels": np.ones((1, 2, 2, 3))}
    path = tmp_path / "ladder.safetensors"
    parity.record(path, rungs, {"model": "tiny"})
    read, notes = parity.recorded(path)
    assert notes == {"model": "tiny"} and read.keys() == rungs.keys()
    assert all(np.array_equal(read[name], rungs[name]) for name in rungs)
    parity.record(path, {"logits": np.ones(1)}, {})
    with pytest.raises(ValueError, match="expected pixels and tokens"):
        parity.recorded(path)
    checkpoint.save_arrays(path, rungs, {"format": "other"})
    with pytest.raises(ValueError, match="got 'other'"):
        parity.recorded(path)


@pytest.mark.parametrize("known", parity.PUBLISHED, ids=lambda known: known.source.split()[0])
def test_published_logits_are_found_and_told_from_others(known: parity.Published) -> None:
    model, logits = next(iter(known.logits.items()))
    order = [2, 0, 1]
    texts = [known.texts[i] for i in order]
    ours = np.array([logits[i] for i in order])
    near = parity.published_rung(model, known.picture_sha256, texts, ours + 0.3 * known.tolerance)
    assert near is not None and near.holds
    far = parity.published_rung(model, known.picture_sha256, texts, ours + 3 * known.tolerance)
    assert far is not None and not far.holds
    assert parity.published_rung(model, "0" * 64, texts, ours) is None
    assert parity.published_rung(model, known.picture_sha256, ["a"], ours) is None
