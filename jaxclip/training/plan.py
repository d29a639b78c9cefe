"""What a training step takes on TPUs that are not there: the real compiler is asked, nothing runs.

It needs libtpu (`pip install 'jaxclip[tpu]'`) and no TPU. It shows that the step compiles, what
memory a device needs and which collectives the program holds; not how fast it is or whether its
numbers are right (the tests show the latter on CPU devices).
"""

import collections
import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.config import ClipConfig
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip
from jaxclip.models.layers import Numerics
from jaxclip.training import cached, step
from jaxclip.training.losses import gathered_contrastive_loss, ring_contrastive_loss
from jaxclip.training.optimizer import adamw
from jaxclip.training.sharding import BATCH, data_mesh, placement

GIB = 2**30
LOSSES = {"gathered": gathered_contrastive_loss, "ring": ring_contrastive_loss}  # and "dense"
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training step to be compiled: bfloat16 products over float32 weights, AdamW."""

    config: ClipConfig
    batch: int  # pairs, over all devices
    loss: str = "ring"
    fsdp: int = 1
    tensor: int = 1
    remat: str = "full"
    parts: int = 1  # of gradient caching

    def __post_init__(self) -> None:
        if self.loss not in ("dense", *LOSSES):
            raise ValueError(f"loss {self.loss!r} came; dense, {', '.join(LOSSES)} are there")


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


def lowered(plan: Plan, mesh: Mesh) -> Any:
    """The whole step for a mesh, up to what a compiler takes; no array is made."""
    model = clip.abstract(plan.config, remat=plan.remat, numerics=Numerics(dtype=jnp.bfloat16))
    optimizer = adamw(5e-4, 2000, 100_000, tower=type(plan.config.vision))
    opt_state = jax.eval_shape(optimizer.init, model)
    places = (placement(model, mesh), placement(opt_state, mesh))
    loss: step.Loss = contrastive_loss
    if plan.loss != "dense":
        loss = step.over_mesh(mesh, LOSSES[plan.loss])
    gradients = functools.partial(step.gradients, loss=loss)
    if plan.parts > 1:
        gradients = functools.partial(cached.gradients, loss=loss, parts=plan.parts)
    compiled = step.sharded_step(
        mesh, optimizer, prepare=step.normalised, gradients=gradients, placement=places
    )
    size, length = plan.config.vision.image_size, plan.config.text.context_length
    split, everywhere = NamedSharding(mesh, BATCH), NamedSharding(mesh, P())
    batch = {
        "image": jax.ShapeDtypeStruct((plan.batch, size, size, 3), jnp.uint8, sharding=split),
        "tokens": jax.ShapeDtypeStruct((plan.batch, length), jnp.int32, sharding=split),
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


def suggestions(plan: Plan, devices: int) -> list[str]:
    """What to change when a step does not fit, the cheapest first."""
    told = []
    if plan.remat != "full":
        told.append("--remat full")
    if plan.loss != "ring":
        told.append("--loss ring")
    if plan.fsdp == 1 and devices > 1:
        told.append(f"--fsdp {min(devices, 8)}")
    if plan.batch // devices >= 2 * plan.parts:
        told.append(f"--parts {2 * plan.parts}")
    return told


def report(plan: Plan, topology: str) -> dict[str, Any]:
    """Compile a step for a topology; what it takes or, with too little memory, what to change."""
    devices = topology_devices(topology)
    mesh = data_mesh(devices, fsdp=plan.fsdp, tensor=plan.tensor)
    told: dict[str, Any] = {
        "topology": topology,
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "batch": plan.batch,
        "pairs a device": plan.batch // (len(devices) // plan.tensor),
        "model TFLOPs a step": round(model_flops(plan.config, plan.batch) / 1e12, 1),
    }
    try:
        compiled = lowered(plan, mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = re.search(r"\(([\d.]+\w) exceeds|Used ([\d.]+\w) of ([\d.]+\w)", str(error))
        return {
            **told,
            "fits": False,
            "because": needed[0] if needed else "out of memory",
            "try": suggestions(plan, len(devices)),
        }
    memory, text = compiled.memory_analysis(), compiled.as_text()
    taken = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    taken += memory.output_size_in_bytes - memory.alias_size_in_bytes
    shares = len(devices) // plan.tensor
    return {
        **told,
        "fits": True,
        "GiB a device": round(taken / GIB, 2),
        "of them state and batch": round(memory.argument_size_in_bytes / GIB, 2),
        "collectives": collectives(text),
        "logits held": sorted(logits_held(text, plan.batch, shares)),
    }
