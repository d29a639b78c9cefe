"""Memory and collectives of a training step on a TPU, from its compiler alone: nothing runs.

It needs libtpu (`pip install 'jaxclip[tpu]'`) and no TPU. It shows that the step compiles, what
memory a device needs and which collectives the program holds; not how fast it is or whether its
numbers are right (the tests show the latter on CPU devices).
"""

import collections
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.config import ClipConfig
from jaxclip.models import clip
from jaxclip.training import from_recipe
from jaxclip.training.pixels import normalize_image
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import BATCH, data_mesh

GIB = 2**30
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"


def topology_devices(name: str) -> list[Any]:
    """The devices of a topology such as v5e:16x16, described by libtpu."""
    from jax.experimental import topologies

    # a v4 chip is then one device, as jax wants it for a mesh, and not two
    options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
        return list(found.devices)
    except Exception as error:  # what libtpu raises has no type of its own
        cause = " ".join(str(error).split())
        message = f"no topology {name!r} ({cause}); one like v4:2x2x4, v5e:16x16 or v6e:4x4 is, "
        raise ValueError(message + "with libtpu: pip install 'jaxclip[tpu]'") from None


def lower(recipe: Recipe, execution: Execution, mesh: Mesh) -> Any:
    """The whole step, lowered for a mesh and ready to be compiled; no array is made."""
    _, state = from_recipe.abstract_state(recipe, mesh)
    step = from_recipe.compiled_step(recipe, execution, mesh, normalize_image)
    size, length = recipe.model.vision.image_size, recipe.text_length
    split, replicated = NamedSharding(mesh, BATCH), NamedSharding(mesh, P())
    pairs = recipe.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((pairs, size, size, 3), jnp.uint8, sharding=split),
        "tokens": jax.ShapeDtypeStruct((pairs, length), jnp.int32, sharding=split),
    }
    key = jax.ShapeDtypeStruct(state.key.shape, state.key.dtype, sharding=replicated)
    return step.lower(state, batch, key)


# What the program holds ---------------------------------------------------------------------------


def _arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(number format, shape) of every array that a piece of XLA's text names."""
    found = re.findall(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]", text)
    return [(kind, tuple(int(d) for d in dims.split(",") if d)) for kind, dims in found]


def collectives(text: str) -> dict[str, dict[str, int]]:
    """{kind: how many stand in a program, and bytes of their results on one device}.

    The body of a loop stands there once, however often it is walked: a ring's once for all stops.
    """
    found: dict[str, dict[str, int]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
    pattern = rf"= (.*?) ({COLLECTIVES})(-start)?\("
    for result, kind, asynchronous in re.findall(pattern, text):
        sizes = [BYTES.get(k, 8) * math.prod(shape) for k, shape in _arrays(result)]
        # an asynchronous one names its input beside its result
        size = max(sizes) if asynchronous and kind != "all-reduce" else sum(sizes)
        found[kind]["count"] += 1
        found[kind]["bytes"] += size
    return dict(found)


def logits_held(text: str, batch: int, devices: int) -> set[tuple[int, ...]]:
    """Shapes in a program that are logits of more than a block: [n, n] or [b, n]."""
    own = batch // devices
    shapes = {shape for _, shape in _arrays(text)}
    return {s for s in shapes if s.count(batch) > 1 or (batch in s and own in s and own > 1)}


def model_flops(config: ClipConfig, batch: int) -> float:
    """Of one step's matrix products and convolutions: three times those of the forward pass.

    What `remat` and caching compute a second time is not counted, nor is the loss.
    """
    size, length = config.vision.image_size, config.text.context_length
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    program = jax.make_jaxpr(lambda m, i, t: m.embed(i, t))(clip.abstract(config), images, tokens)
    return 3.0 * batch * _flops(program.jaxpr)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        out = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * out * math.prod(left[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape  # [kh, kw, i, o]
            total += 2 * out * math.prod(kernel[:-1])
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            total += times * _flops(inner) if hasattr(inner, "eqns") else 0
    return total


# The report ---------------------------------------------------------------------------------------


def suggestions(recipe: Recipe, execution: Execution, devices: int) -> list[str]:
    """Flags that save memory where a step does not fit, the cheapest first."""
    flags = []
    if recipe.remat != "full":
        flags.append("--remat full")
    if execution.loss != "ring":
        flags.append("--loss ring")
    if execution.fsdp == 1 and devices > 1:
        flags.append(f"--fsdp {min(devices, 8)}")
    if recipe.batch_size // devices >= 2 * recipe.microbatches:
        flags.append(f"--microbatches {2 * recipe.microbatches}")
    return flags


def _memory_error(message: str) -> str:
    """The compiler's message on memory in short: what temporary arrays need, what the chip has."""
    found = re.search(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", message)
    if found is None:
        return message.splitlines()[0]
    return f"needs {found[1]} GiB, the chip has {found[2]} GiB"


def report(recipe: Recipe, execution: Execution, topology: str) -> dict[str, Any]:
    """What a step needs on a topology or, where it does not fit, which flags to change."""
    devices = topology_devices(topology)
    mesh = data_mesh(devices, fsdp=execution.fsdp, tensor=execution.tensor)
    shares = len(devices) // execution.tensor
    found: dict[str, Any] = {
        "topology": topology,
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "batch": recipe.batch_size,
        "pairs a device": recipe.batch_size // shares,
        "model TFLOPs a step": round(model_flops(recipe.model, recipe.batch_size) / 1e12, 1),
    }
    try:
        compiled = lower(recipe, execution, mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {
            **found,
            "fits": False,
            "because": _memory_error(str(error)),
            "try": suggestions(recipe, execution, len(devices)),
        }
    return {**found, "fits": True, **_compiled_facts(compiled, recipe.batch_size, shares)}


def _compiled_facts(compiled: Any, batch: int, shares: int) -> dict[str, Any]:
    memory, text = compiled.memory_analysis(), compiled.as_text()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    used += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "GiB a device": round(used / GIB, 2),
        "of them state and batch": round(memory.argument_size_in_bytes / GIB, 2),
        "collectives": collectives(text),
        "logits held": sorted(logits_held(text, batch, shares)),
    }
