"""Where a model looks: attention of the token that becomes the image's features, over the picture.

Of a Vision Transformer: the class token's weights in the last block. Of a ResNet: those of the
attention pool, whose query is the mean of the last grid (paper section 2.4). Both averaged over the
heads, without the token's attention to itself.

Annotated: chapter 3, "Attention".
"""

import jax

from jaxclip.config import VisionConfig
from jaxclip.models.clip import Clip
from jaxclip.models.resnet import ModifiedResNet

Array = jax.Array


def attention_map(model: Clip, images: Array) -> Array:
    """images [n, h, w, c] -> weights [n, rows, columns] of the last grid; each map sums to 1."""
    vision = model.config.vision
    if isinstance(vision, VisionConfig) and vision.pooling != "class":
        raise ValueError(
            f"expected an image tower that pools its class token, got pooling {vision.pooling}"
        )
    _, seen = model.visual.stages(images)
    if isinstance(model.visual, ModifiedResNet):
        weights = seen["attention"].mean(1)  # [n, m]
        shape = seen["layer4"].shape[1:3]
    else:
        weights = seen["attention"][-1, :, :, 0].mean(1)  # [n, m], of [layers, n, a, l, m]
        shape = vision.grid
    over_picture = weights[:, 1:]
    maps = over_picture / over_picture.sum(-1, keepdims=True)
    return maps.reshape(-1, *shape)
