"""Zero-shot and retrieval during training, on the mesh of the model's parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.config import ClipConfig
from jaxclip.data.classes import Relabelled, align_labels
from jaxclip.data.labelled import Labelled
from jaxclip.data.pairs import Source
from jaxclip.data.stream import Skips
from jaxclip.data.texts import Cutter
from jaxclip.evaluation.features import encode_blocks, map_batches
from jaxclip.evaluation.metrics import Tally, retrieve, top_k
from jaxclip.evaluation.retrieval import captions, embed_pairs, why_unusable
from jaxclip.evaluation.zero_shot import build_classifier
from jaxclip.evaluation.zero_shot import why_unusable as why_no_class
from jaxclip.images.preprocess import Preprocess
from jaxclip.reference import l2_normalize
from jaxclip.tokenizer import check_vocabulary

BLOCK = 256  # pictures or texts at a time, or the next multiple of the number of devices


class HeldOut:
    """Metrics of a model on pictures that the run does not train on: `HeldOut(...)(model)`.

    The batch is split over all devices of the mesh, the model keeps its shardings, and every
    process gets all embeddings. All processes call it together, on the same pictures.

    Args:
      mesh: the devices of the run.
      config: of the model; longer texts than it takes are truncated with a warning.
      labelled: pictures to classify zero-shot; None for none.
      templates: prompts for its class names.
      pairs: pictures and captions for retrieval; None for none.
      skip_limit: unusable pictures that are skipped before it fails.
    """

    def __init__(
        self,
        mesh: Mesh,
        config: ClipConfig,
        *,
        labelled: Labelled | None = None,
        templates: Sequence[str] = ("a photo of a {}.",),
        pairs: Source | None = None,
        skip_limit: int = 1000,
    ) -> None:
        self.labelled = None if labelled is None else align_labels(labelled)
        self.templates, self.pairs = templates, pairs
        self.preprocess = Preprocess.of(config).safe  # the pictures as training sees them
        self.skips = Skips(skip_limit), Skips(skip_limit)  # of `labelled`, of `pairs`
        self.cutter = Cutter(config.text.context_length, "held-out texts", config.text)
        self.block = -(-BLOCK // mesh.size) * mesh.size
        self.split = NamedSharding(mesh, P(mesh.axis_names))
        everywhere = NamedSharding(mesh, P())
        self.encode_image = jax.jit(
            lambda model, x: model.encode_image(x), out_shardings=everywhere
        )
        self.encode_text = jax.jit(lambda model, x: model.encode_text(x), out_shardings=everywhere)

    def __call__(self, model: Any) -> dict[str, float]:
        scores: dict[str, float] = {}
        if self.labelled is not None:
            scores |= self._zero_shot(model, self.labelled)
        if self.pairs is not None:
            blocks = self._blocks(model, self.pairs, why_unusable, self.skips[1])
            captioned = ((x.features, [captions(pair) for pair in x.items]) for x in blocks)
            scores |= retrieve(*embed_pairs(captioned, self._texts(model))).metrics()
        return scores

    def _put(self, rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(rows.shape, self.split, lambda index: rows[index])

    def _texts(self, model: Any) -> Callable[[Sequence[str]], np.ndarray]:
        def encode(texts: Sequence[str]) -> np.ndarray:
            tokens = self.cutter(texts)
            check_vocabulary(tokens, model.config.text.vocab_size)
            return map_batches(lambda t: self.encode_text(model, self._put(t)), tokens, self.block)

        return encode

    def _blocks(
        self, model: Any, source: Any, usable: Callable[[Any], str | None], skips: Skips
    ) -> Any:
        return encode_blocks(
            source,
            self.preprocess,
            lambda pixels: self.encode_image(model, self._put(pixels)),
            skips=skips,
            usable=usable,
            block=self.block,
        )

    def _zero_shot(self, model: Any, labelled: Relabelled) -> dict[str, float]:
        names = labelled.names
        T_e = build_classifier(self._texts(model), names, self.templates)  # [c, e]

        tally = Tally(len(names))

        def no_label(example: Any) -> str | None:
            return why_no_class(example, len(names))

        for block in self._blocks(model, labelled, no_label, self.skips[0]):
            if block.items:
                top, _ = top_k(l2_normalize(block.features) @ T_e.T, 5)
                tally.add(np.array([example.label for example in block.items]), top)
        return tally.metrics()
