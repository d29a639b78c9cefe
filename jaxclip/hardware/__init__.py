"""A plain model arranged for a chip: the same function and names, faster arithmetic."""

from typing import TYPE_CHECKING, TypeVar

import jax

if TYPE_CHECKING:
    from jaxclip.models.clip import Clip
    from jaxclip.models.encoders import Encoders

Model = TypeVar("Model", bound="Encoders")  # a `Clip` or a `SingleTower`


def arrange(
    model: Model,
    platform: str | None = None,
    *,
    device_kind: str | None = None,
    attention: str = "auto",
) -> Model:
    """The model arranged for inference on a platform; itself where nothing is measured to gain.

    Args:
      model: plain, of arrays or of shapes; it is left unchanged.
      platform: "cpu", "gpu" or "tpu"; this machine's if not given.
      device_kind: of the `jax.Device`; this machine's if not given.
      attention: its kernel on a GPU; "auto" is the one measured on that device.

    Raises:
      ValueError: another platform, or a kernel that is unknown or does not take the model's dtype.
    """
    if platform not in (None, "cpu", "gpu", "tpu"):
        raise ValueError(f"platform: expected cpu, gpu or tpu, got {platform!r}")
    platform = platform or jax.default_backend()
    if platform == "gpu":
        kind = jax.devices()[0].device_kind if device_kind is None else device_kind
        return for_gpu(model, kind, attention=attention)
    _require_einsum(attention, platform)
    return for_cpu(model) if platform == "cpu" else model


def _require_einsum(attention: str, platform: str) -> None:
    """ValueError for a kernel that only GPUs have."""
    if attention not in ("auto", "einsum"):
        raise ValueError(f"attention: expected auto or einsum on a {platform}, got {attention!r}")


def for_cpu(model: Model) -> Model:
    """The model arranged for inference by XLA on a CPU; see `cpu.for_cpu`."""
    from jaxclip.hardware import cpu

    return cpu.for_cpu(model)


def for_gpu(
    model: Model,
    device_kind: str,
    *,
    attention: str = "auto",
    block_kernels: bool | None = None,
    training_devices: int | None = None,
) -> Model:
    """The model arranged for an NVIDIA GPU, in training as well; see `gpu.for_gpu`."""
    from jaxclip.hardware import gpu

    return gpu.for_gpu(
        model,
        device_kind,
        attention=attention,
        block_kernels=block_kernels,
        training_devices=training_devices,
    )


def plain(model: Model) -> Model:
    """The plain model that was arranged: to save, compare or train it."""
    from jaxclip.hardware import cpu, flat

    return cpu.plain(model) if isinstance(model, cpu.CpuEncoders) else flat.plain(model)


def arrange_training(
    model: "Clip",
    platform: str,
    remat: str,
    *,
    device_kind: str = "",
    attention: str = "auto",
    devices: int | None = None,
) -> "Clip":
    """The model in modules that train faster on a platform; every leaf keeps its name and shape.

    Args:
      model: plain, of arrays or of shapes; it is left unchanged.
      platform: "cpu", "gpu" ("cuda") or "tpu".
      remat: the recipe's.
      device_kind: of the `jax.Device`.
      attention: its kernel; "auto" is the one measured on that device.
      devices: that share a step; if not given, "auto" takes no kernel that needs to be alone.

    Raises:
      ValueError: a kernel that is unknown, or that the platform or the model's dtype does not take.
    """
    if platform in ("gpu", "cuda"):
        return for_gpu(model, device_kind, attention=attention, training_devices=devices)
    _require_einsum(attention, platform)
    if platform == "cpu":
        from jaxclip.hardware import cpu

        return cpu.for_training(model, remat)
    if platform == "tpu":
        from jaxclip.hardware import tpu

        return tpu.for_training(model, remat)
    return model
