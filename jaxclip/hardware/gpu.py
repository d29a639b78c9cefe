"""Models arranged for NVIDIA GPUs: the same functions and official names, other arithmetic."""

from jaxclip.hardware import flat
from jaxclip.hardware.attention import FUSED_DTYPES, require_kernel
from jaxclip.hardware.blocks import choose_block_kernels, require_block_kernels
from jaxclip.hardware.modules import Model, modules_of
from jaxclip.models.layers import Attention


def for_gpu(
    model: Model,
    device_kind: str,
    *,
    attention: str = "auto",
    block_kernels: bool | None = None,
    training_devices: int | None = None,
) -> Model:
    """The same tree in modules for a GPU, for inference and training; the model is unchanged.

    With "auto" a model that does not compute in a dtype of the kernels is returned as it is.

    Args:
      model: plain, of arrays or of shapes.
      device_kind: of the `jax.Device`.
      attention: "auto" or a kernel of `attention.Kernel`; "einsum" is without any kernel.
      block_kernels: whether blocks have kernels for their norms and activation; None for where
        that was measured, unless `attention` is "einsum".
      training_devices: that share a training step; None for inference.

    Raises:
      ValueError: a kernel that is unknown, cannot run, or does not take the model's dtype or heads.
    """
    tower = model.visual if hasattr(model, "visual") else model.text
    dtype = tower.numerics.dtype
    require_kernel(attention, dtype, _head_widths(model))
    if block_kernels:
        require_block_kernels(dtype)
    elif attention == "auto" and dtype not in FUSED_DTYPES:
        return model
    if block_kernels is None:
        block_kernels = attention != "einsum" and choose_block_kernels(
            device_kind, dtype, training_devices=training_devices
        )
    return flat.arrange(
        model,
        block_kernels=block_kernels,
        device_kind=device_kind,
        kernel=attention,
        training_devices=training_devices,
    )


def _head_widths(model: Model) -> list[int]:
    """The channels of a head in each transformer."""
    found = (module for module in modules_of(model) if type(module) is Attention)
    return [each.in_proj_kernel.shape[-1] // 3 // each.heads for each in found]
