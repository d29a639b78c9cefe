"""Models arranged for NVIDIA GPUs: the same functions and official names, other arithmetic."""

from jaxclip.hardware import flat
from jaxclip.hardware.attention import FUSED_DTYPES, require_kernel
from jaxclip.hardware.modules import Model


def for_gpu(model: Model, device_kind: str, *, attention: str = "auto") -> Model:
    """The same tree in modules for a GPU, for inference and training; the model is unchanged.

    With "auto" a model that does not compute in a dtype of the kernels is returned as it is.

    Args:
      model: plain, of arrays or of shapes.
      device_kind: of the `jax.Device`.
      attention: "auto" or a kernel of `attention.Kernel`.

    Raises:
      ValueError: a kernel that is unknown or does not take the model's dtype.
    """
    tower = model.visual if hasattr(model, "visual") else model.text
    dtype = tower.numerics.dtype
    require_kernel(attention, dtype)
    if attention == "auto" and dtype not in FUSED_DTYPES:
        return model
    return flat.arrange(model, device_kind=device_kind, kernel=attention)
