"""What a training step takes on TPUs that are not there: the real compiler is asked, nothing runs.

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
from jaxclip.training import assembly, step
from jaxclip.training.recipe import Layout, TrainConfig
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


def lowered(config: TrainConfig, layout: Layout, mesh: Mesh) -> Any:
    """The whole step for a mesh, up to what a compiler takes; no array is made."""
    model, opt_state = assembly.shapes(config, mesh)
    compiled = assembly.compiled_step(config, layout, mesh, step.normalised)
    size, length = config.model.vision.image_size, config.text_length
    split, everywhere = NamedSharding(mesh, BATCH), NamedSharding(mesh, P())
    pairs = config.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((pairs, size, size, 3), jnp.uint8, sharding=split),
        "tokens": jax.ShapeDtypeStruct((pairs, length), jnp.int32, sharding=split),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
    return compiled.lower(model, opt_state, batch, key)


# What stands in the program -----------------------------------------------------------------------


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


def suggestions(config: TrainConfig, layout: Layout, devices: int) -> list[str]:
    """What to change when a step does not fit, the cheapest first."""
    told = []
    if config.remat != "full":
        told.append("--remat full")
    if layout.loss != "ring":
        told.append("--loss ring")
    if layout.fsdp == 1 and devices > 1:
        told.append(f"--fsdp {min(devices, 8)}")
    if config.batch_size // devices >= 2 * config.parts:
        told.append(f"--parts {2 * config.parts}")
    return told


def _needed(message: str) -> str:
    """What the compiler says of memory: temporary arrays, beside what the chip has."""
    found = re.search(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", message)
    return f"{found[1]} GiB wanted, {found[2]} GiB there" if found else message.splitlines()[0]


def report(config: TrainConfig, layout: Layout, topology: str) -> dict[str, Any]:
    """Compile a step for a topology; what it takes or, with too little memory, what to change."""
    devices = topology_devices(topology)
    mesh = data_mesh(devices, fsdp=layout.fsdp, tensor=layout.tensor)
    shares = len(devices) // layout.tensor
    told: dict[str, Any] = {
        "topology": topology,
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "batch": config.batch_size,
        "pairs a device": config.batch_size // shares,
        "model TFLOPs a step": round(model_flops(config.model, config.batch_size) / 1e12, 1),
    }
    try:
        compiled = lowered(config, layout, mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {
            **told,
            "fits": False,
            "because": _needed(str(error)),
            "try": suggestions(config, layout, len(devices)),
        }
    memory, text = compiled.memory_analysis(), compiled.as_text()
    taken = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    taken += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        **told,
        "fits": True,
        "GiB a device": round(taken / GIB, 2),
        "of them state and batch": round(memory.argument_size_in_bytes / GIB, 2),
        "collectives": collectives(text),
        "logits held": sorted(logits_held(text, config.batch_size, shares)),
    }
