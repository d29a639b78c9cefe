"""Models arranged for NVIDIA GPUs: the same functions and official names, other arithmetic."""

from jaxclip.hardware import flat
from jaxclip.hardware.attention import FUSED_DTYPES, require_kernel
from jaxclip.hardware.modules import Model, modules_of
from jaxclip.hardware.norm import fuse_norms, require_norms
from jaxclip.models.layers import Attention


def for_gpu(
    model: Model,
    device_kind: str,
    *,
    attention: str = "auto",
    norms: bool | None = None,
    training_devices: int | None = None,
) -> Model:
    """The same tree in modules for a GPU, for inference and training; the model is unchanged.

    With "auto" a model that does not compute in a dtype of the kernels is returned as it is.

    Args:
      model: plain, of arrays or of shapes.
      device_kind: of the `jax.Device`.
      attention: "auto" or a kernel of `attention.Kernel`.
      norms: whether the norms of blocks have a backward kernel; None for where that was measured.
      training_devices: that share a training step; None for inference.

    Raises:
      ValueError: a kernel that is unknown, cannot run, or does not take the model's dtype or heads.
    """
    tower = model.visual if hasattr(model, "visual") else model.text
    dtype = tower.numerics.dtype
    require_kernel(attention, dtype, _head_widths(model))
    if norms:
        require_norms(dtype)
    elif attention == "auto" and dtype not in FUSED_DTYPES:
        return model
    if norms is None:
        norms = fuse_norms(device_kind, dtype, training_devices=training_devices)
    return flat.arrange(
        model,
        fused_norms=norms,
        device_kind=device_kind,
        kernel=attention,
        training_devices=training_devices,
    )


def _head_widths(model: Model) -> list[int]:
    """The channels of a head in each transformer."""
    found = (module for module in modules_of(model) if type(module) is Attention)
    return [each.in_proj_kernel.shape[-1] // 3 // each.heads for each in found]
