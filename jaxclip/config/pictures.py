"""The config of what makes pixels of a picture."""

import dataclasses
import math
from typing import Any, Self

from jaxclip.config.fields import Interpolation, Resize, Steps, check_choices, require, short_repr

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the released preprocessing, in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """How a picture becomes pixels; by default as for the released models."""

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: Interpolation = "bicubic"
    resize: Resize = "shortest"
    """Shortest side to size, then the middle; both sides, whatever the shape; or longest side to
    size, then a border."""
    fill: int = 0
    """Value of the border in every channel, 0 to 255."""
    steps: Steps = "openai"
    """Whose order: "openai" resizes in the picture's own mode and rounds half a pixel of the crop
    to even; "transformers" converts to RGB on white first and rounds it down."""

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = isinstance(values, tuple) and all(type(x) in (int, float) for x in values)
            require(
                numbers and len(values) == 3 and all(math.isfinite(x) for x in values),
                f"{name}: expected three finite numbers, got {values!r:.80}",
            )
        require(min(self.std) > 0, f"std: expected three positive numbers, got {self.std!r:.80}")
        check_choices(self, interpolation=Interpolation, resize=Resize, steps=Steps)
        require(
            type(self.fill) is int and 0 <= self.fill <= 255,
            f"PictureConfig.fill: expected an integer from 0 to 255, got {short_repr(self.fill)}",
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The config whose fields JSON keeps, lists for tuples."""
        items = {**data}.items()  # TypeError for what is no object
        fields: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in items}
        return cls(**fields)


CLIP_PICTURES = PictureConfig()
