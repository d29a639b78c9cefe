"""Where arrays live on a mesh of devices: the batch by rows, parameters by rules on their paths.

Three axes. Over `data` and `fsdp` the batch is split; over `fsdp` the parameters, with their
moments and gradients, are cut as well and put together where they are used (as in ZeRO, Rajbhandari
et al. 2019, arXiv 1910.02054); over `tensor` matrix products are cut (Shoeybi et al. 2019, arXiv
1909.08053): the first of a block by columns, the second by rows.

Annotated: chapter 12, "The loss on many devices".
"""

import functools
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.models.parameters import PRODUCTS, named_leaves, path_name

BATCH = P(("data", "fsdp"))  # axis 0 of images and tokens

# The first rule whose pattern is found in a parameter's path counts; what no rule names is on every
# device. Stacked blocks have the layers in front.
RULES: tuple[tuple[str, P], ...] = (
    (r"attnpool\.(attn\.in_proj_|mlp\.c_fc\.)kernel$", P("fsdp", "tensor")),  # no stack
    (r"attnpool\.(attn\.out_proj|mlp\.c_proj)\.kernel$", P("tensor", "fsdp")),
    (r"attnpool\.(attn|mlp)\.", P()),
    (r"attn_pool\.attn\.[qkv]_proj_kernel$", P("fsdp", "tensor")),
    (r"attn_pool\.attn\.out_proj\.kernel$", P("tensor", "fsdp")),
    (r"attn_pool\.", P()),
    (r"attn\.in_proj_kernel$", P(None, "fsdp", "tensor")),
    (r"attn\.in_proj_bias$", P(None, "tensor")),
    (r"attn\.out_proj\.kernel$", P(None, "tensor", "fsdp")),
    (r"mlp\.c_fc\.kernel$", P(None, "fsdp", "tensor")),
    (r"mlp\.c_fc\.bias$", P(None, "tensor")),
    (r"mlp\.c_proj\.kernel$", P(None, "tensor", "fsdp")),
    (r"token_embedding\.embedding$", P("tensor", "fsdp")),
    (r"(visual\.proj|text_projection)(\.kernel)?$", P("fsdp", "tensor")),
    (r"attnpool\.[qkvc]_proj\.kernel$", P("fsdp", "tensor")),
    (r"(conv\d|downsample\.0)\.kernel$", P(None, None, "fsdp", "tensor")),
)


def data_mesh(devices: list[jax.Device] | None = None, *, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """All devices; along `data` as many as `fsdp` and `tensor` leave."""
    chosen = devices or jax.devices()
    if len(chosen) % (fsdp * tensor):
        raise ValueError(
            f"fsdp: expected, times tensor, a divisor of {len(chosen)} devices, "
            f"got {fsdp} x {tensor}"
        )
    return jax.make_mesh(
        (len(chosen) // (fsdp * tensor), fsdp, tensor),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,  # the default, Explicit, refuses ordinary code
        devices=chosen,
    )


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """How the array at that dotted path is cut.

    A dimension that the devices of its axis do not divide stays whole.
    """
    found = next((spec for pattern, spec in RULES if re.search(pattern, path)), P())
    whole = [
        axis if axis is not None and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(found, shape, strict=False)
    ]
    return P(*whole)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree of the leaves' shardings: of parameters, gradients, an optimiser's state or all."""
    leaves, structure = jax.tree.flatten(tree)
    found = [
        NamedSharding(mesh, partition_spec(path, leaf.shape, mesh))
        for path, leaf in zip(named_leaves(tree), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, found)


def gather(params: Any, mesh: Mesh, dtype: Any = None) -> Any:
    """Parameters put together along `fsdp`, still cut along `tensor`; inside of jit.

    Left alone, XLA multiplies by the cut kernels and sums activations over the devices, which are
    larger than the kernels. In the backward pass every device gets its own part of the summed
    gradient, not all of it.

    Args:
      params: cut as `shardings` says.
      mesh: of `data_mesh`.
      dtype: of the model's products. Kernels are converted before they travel, not after; their
        gradients travel in it too. None leaves them as they are.
    """
    if mesh.shape["fsdp"] == 1:
        return params

    def whole(path: tuple[Any, ...], leaf: Any, cut: NamedSharding) -> Any:
        if "fsdp" not in cut.spec:
            return leaf
        if dtype is not None and path_name(path).endswith(PRODUCTS):
            leaf = jax.lax.with_sharding_constraint(leaf.astype(dtype), cut)
        spec = P(*(None if axis == "fsdp" else axis for axis in cut.spec))
        return _resharded(leaf, NamedSharding(mesh, spec), cut)

    return jax.tree_util.tree_map_with_path(whole, params, shardings(params, mesh))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _resharded(x: jax.Array, sharding: NamedSharding, gradient: NamedSharding) -> jax.Array:
    """x on `sharding`, whose gradient is on `gradient`; jax would put it on `sharding` as well."""
    return jax.lax.with_sharding_constraint(x, sharding)


def _resharded_fwd(x: jax.Array, sharding: NamedSharding, gradient: NamedSharding) -> Any:
    return _resharded(x, sharding, gradient), None


def _resharded_bwd(_: NamedSharding, gradient: NamedSharding, __: None, g: jax.Array) -> Any:
    return (jax.lax.with_sharding_constraint(g, gradient),)


_resharded.defvjp(_resharded_fwd, _resharded_bwd)
