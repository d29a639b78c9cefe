"""A plain model arranged for a chip: the same function and names, faster arithmetic."""

from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:
    from jaxclip.models.clip import Clip


def arrange(model: "Clip", platform: str | None = None) -> "Clip":
    """The model arranged for inference on a platform; itself where nothing is measured to gain.

    Args:
      model: plain, of arrays or of shapes; it is left unchanged.
      platform: "cpu", "gpu" or "tpu"; this machine's if not given.

    Raises:
      ValueError: another platform.
    """
    if platform not in (None, "cpu", "gpu", "tpu"):
        raise ValueError(f"platform: expected cpu, gpu or tpu, got {platform!r}")
    return for_cpu(model) if (platform or jax.default_backend()) == "cpu" else model


def for_cpu(model: "Clip") -> "Clip":
    """The model arranged for inference by XLA on a CPU; see `cpu.for_cpu`."""
    from jaxclip.hardware import cpu

    return cpu.for_cpu(model)


def plain(model: "Clip") -> "Clip":
    """The plain model that was arranged: to save, compare or train it."""
    from jaxclip.hardware import cpu

    return cpu.plain(model) if isinstance(model, cpu.CpuClip) else model


def arrange_training(model: "Clip", platform: str, remat: str) -> "Clip":
    """The model in modules that train faster on a platform; every leaf keeps its name and shape."""
    from jaxclip.hardware import cpu

    return cpu.for_training(model, remat) if platform == "cpu" else model
