"""The gradient of a training step on this device, beside the CPU's in float32 by the einsum."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.batches import arrays
from experiments.bench.gpu.rows import CONFIGS
from jaxclip.models import clip, parameters
from jaxclip.training import from_recipe
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh
from jaxclip.training.step import clip_loss_fn

# ||g - c|| / ||c|| over all parameters. float32: two orders of adding up through some 30 products
# and norms; bfloat16: 2^-9 a product, on the way there and back.
BOUNDS = {"float32": 1e-4, "bfloat16": 0.1}
Gradient = dict[str, np.ndarray]


def gradients(model: str, batch: int, dtype: str) -> dict[str, Any]:
    """Errors of the whole gradient and of its worst array, relative to the CPU's.

    float32 by products of the highest precision; bfloat16 with the kernels that training takes.
    ValueError where the whole gradient's is above its bound.
    """
    config, cpu = CONFIGS[model], jax.devices("cpu")[0]
    with jax.default_device(cpu):
        flat = {name: np.asarray(x) for name, x in parameters.to_flat(clip.create(config)).items()}
    recipe = Recipe(batch_size=batch, text_length=config.text.context_length, model=config)
    reference = _gradient(recipe, flat, cpu)
    found = _gradient(dataclasses.replace(recipe, dtype=dtype), flat, jax.devices()[0])
    errors = {name: _distance(found, reference, [name]) for name in reference}
    worst = max(errors, key=errors.__getitem__)
    whole = _distance(found, reference, list(reference))
    if not whole <= BOUNDS[dtype]:
        raise ValueError(f"gradient: expected an error of at most {BOUNDS[dtype]}, got {whole:.1e}")
    return {"error": whole, "worst error": errors[worst], "worst": worst, "arrays": len(errors)}


def _gradient(recipe: Recipe, flat: dict[str, Any], device: jax.Device) -> Gradient:
    """By name of the parameter; the program that training on that device has."""
    mesh = data_mesh([device])
    images, tokens = arrays(recipe.model, recipe.batch_size)
    precision = "highest" if recipe.dtype == "float32" else "default"
    with jax.default_device(device), jax.default_matmul_precision(precision):
        graphdef, _ = from_recipe.abstract_state(recipe, mesh)
        state = from_recipe.first_state(recipe, mesh, flat)
        loss = clip_loss_fn(graphdef, from_recipe.choose_loss(recipe, Execution(), mesh))
        batch = {"image": jnp.asarray(images), "tokens": jnp.asarray(tokens)}
        take = jax.jit(jax.grad(lambda params: loss(params, state.stats, batch, state.key)[0]))
        found = jax.tree_util.tree_leaves_with_path(take(state.params))
    names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found)
    return {
        n.removesuffix(".value"): np.asarray(x, np.float64)
        for n, (_, x) in zip(names, found, strict=True)
    }


def _distance(found: Gradient, reference: Gradient, names: list[str]) -> float:
    """Relative to the reference's norm, or to a thousandth of the mean one where it is smaller.

    The gradient of a bias of the keys, say, is rounding alone.
    """
    total = sum(float(np.vdot(x, x)) for x in reference.values())
    least = len(names) * total / len(reference) / 1e6
    difference = sum(float(np.sum((found[n] - reference[n]) ** 2)) for n in names)
    own = sum(float(np.vdot(reference[n], reference[n])) for n in names)
    return float(np.sqrt(difference / max(own, least)))
