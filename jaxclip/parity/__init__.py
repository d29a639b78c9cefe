"""The parity ladder: two implementations compared stage by stage, from the stem to the logits.

A stage is a rung. The rungs of a model are a flat dict, in the order in which they are computed:
`tokens`, `pixels`, then for each tower `image.stem`, `image.block.0`, ... (or `image.layer1`, ...),
`image.pooled`, `image.features`, the same of `text`, then `image_embeds`, `text_embeds`, `logits`.
The judge is `reference` in float64. What counts as rounding follows, stage by stage, from what
float32 does to the reference. A recorded ladder is one safetensors file of rungs.

rungs       the stages of a model and of the reference
ladder      Rung, two ladders compared, the first departure
rounding    what counts as rounding; the judge
files       recorded ladders, written, read and checked
published   logits that others published
"""

from jaxclip.parity.files import FORMAT, check_recorded, record, recorded, runnable
from jaxclip.parity.ladder import Rung, compare, first_departure
from jaxclip.parity.published import PUBLISHED, Published, published_rung
from jaxclip.parity.rounding import FLOOR, allowed, bounds, judge, perturb_pool
from jaxclip.parity.rungs import (
    Rungs,
    in_force,
    model_rungs,
    reference_options,
    reference_rungs,
    rung_shapes,
)

__all__ = [
    "FLOOR",
    "FORMAT",
    "PUBLISHED",
    "Published",
    "Rung",
    "Rungs",
    "allowed",
    "bounds",
    "check_recorded",
    "compare",
    "first_departure",
    "in_force",
    "judge",
    "model_rungs",
    "perturb_pool",
    "published_rung",
    "record",
    "recorded",
    "reference_options",
    "reference_rungs",
    "rung_shapes",
    "runnable",
]
