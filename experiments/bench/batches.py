"""Random batches of training and inference; NumPy alone, for either side."""

import numpy as np

from jaxclip.config import ClipConfig


def arrays(config: ClipConfig, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images [n, h, w, c] float32 and tokens [n, l] int32, each with its end mark."""
    rng = np.random.default_rng(0)
    t = config.text
    images = rng.standard_normal((batch, *config.vision.image_sides, 3), np.float32)
    tokens = rng.integers(1, t.vocab_size - 2, size=(batch, t.context_length)).astype(np.int32)
    tokens[:, 0], tokens[:, t.context_length // 2] = t.vocab_size - 2, t.vocab_size - 1
    return images, tokens
