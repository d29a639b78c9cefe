"""Which fault is planted in which model, and what its user recorded."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from experiments.proofs.planted_faults.peers import block_faults as b
from experiments.proofs.planted_faults.peers import end_faults as e
from experiments.proofs.planted_faults.peers import input_faults as i
from experiments.proofs.planted_faults.peers.block_faults import Fault
from experiments.proofs.planted_faults.peers.implementations import DTYPES, ours
from experiments.proofs.planted_faults.peers.program import Program
from experiments.proofs.planted_faults.peers.record import NHWC

IMAGE, TEXT = ("image_features",), ("text_features",)
FEATURES = (*IMAGE, *TEXT)
LOGITS = ("logits_per_image",)
ALL = (*FEATURES, *LOGITS)
PIXELS, FROM_PICTURES = ("pixels",), ("image_features_from_pictures",)
TOKENS, FROM_TEXTS = ("tokens",), ("text_features_from_texts",)


@dataclasses.dataclass(frozen=True)
class Planted:
    """One fault: the doctor's name for it, where it is, how it was planted."""

    slug: str
    tower: str
    plant: Fault
    how: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    """A program with faults (or none) and what its user recorded."""

    model: str
    kind: str  # "fault", "pair", "sound" or "unknown"
    planted: tuple[Planted, ...]
    keys: tuple[str, ...]
    what: str = ""
    threads: int = 1
    peer: Callable[[], Any] | None = None
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Unique in the exam."""
        parts = [f"{p.tower} {p.slug}{f' ({p.how})' if p.how else ''}" for p in self.planted]
        what = " + ".join(parts) or self.what
        half = f", {self.dtype}" if self.dtype != "float32" else ""
        return f"{self.model}: {what}{half} [{', '.join(self.keys)}]"

    def program(self) -> Any:
        """The program with its faults planted."""
        if self.peer is not None:
            return self.peer()
        program = Program(self.model)
        for planted in self.planted:
            towers = ("image", "text") if planted.tower == "both" else (planted.tower,)
            for tower in towers:
                planted.plant(program, tower)
        if self.dtype != "float32":
            program.clip = ours(program, DTYPES[self.dtype])
        return program


Row = tuple[Planted, Sequence[str]]


def one(slug: str, tower: str, plant: Fault, keys: Sequence[str], how: str = "") -> Row:
    return Planted(slug, tower, plant, how), keys


# Vision Transformer with QuickGELU and heads of 64
VIT = (
    one("exact-gelu", "image", b.exact_gelu, IMAGE),
    one("exact-gelu", "both", b.exact_gelu, LOGITS),
    one("tanh-gelu", "image", b.tanh_gelu, FEATURES),
    one("relu", "image", b.take_relu, IMAGE),
    one("epsilon-1e-6", "image", b.set_epsilon(1e-6), IMAGE),
    one("epsilon-1e-12", "both", b.set_epsilon(1e-12), FEATURES),
    one("post-norm", "image", b.put_norms_behind, IMAGE),
    one("no-ln-pre", "image", e.skip("ln_pre"), IMAGE),
    one("no-ln-post", "image", e.skip("ln_post"), IMAGE),
    one("qkv-order-kqv", "image", b.read_packed_as("kqv"), IMAGE),
    one("qkv-order-vqk", "image", b.read_packed_as("vqk"), FEATURES),
    one("transposed-attention-output", "image", b.transpose_attention_output, IMAGE),
    one("no-query-scale", "image", b.set_query_scale(0), IMAGE),
    one("double-query-scale", "image", b.set_query_scale(-1), IMAGE),
    one("causal-image-tower", "image", e.mask_image_tower, IMAGE),
    one("pooled-mean", "image", e.pool_mean, IMAGE, "of all tokens"),
    one("pooled-mean", "image", e.pool_mean_of_patches, IMAGE, "of the patches"),
    one("pooled-last-token", "image", e.pool_last, IMAGE),
    one("positions-off-by-one", "image", e.put_class_position_last, IMAGE, "class row last"),
    one("positions-interpolated", "image", e.interpolate_positions, IMAGE),
    one("no-positions", "image", e.drop_positions, IMAGE),
    one("class-token-last", "image", e.put_class_token_last, IMAGE, "pooled last"),
    one("class-token-last", "image", e.pool_first_of_class_token_last, IMAGE, "first pooled"),
    one("patches-transposed", "image", e.flatten_by_columns, IMAGE, "patches by columns"),
    one("patches-transposed", "image", e.transpose_position_grid, IMAGE, "positions by columns"),
    one("missing-class-token", "image", e.forget_class_embedding, IMAGE, "embedding zero"),
    one("missing-class-token", "image", e.leave_class_token_out, IMAGE, "not there"),
    one("no-biases", "image", b.drop_biases, IMAGE),
    one("layers-reversed", "image", b.reverse_layers, IMAGE),
    one("layers-swapped", "image", b.swap_layers, IMAGE),
    one("missing-last-layer", "image", b.drop_last_layer, IMAGE),
    one("missing-layer", "image", b.drop_second_layer, IMAGE),
    one("no-projection", "image", e.drop_projection, IMAGE),
    one("features-normalised", "both", e.normalise_features, FEATURES),
    one("other-weights", "both", e.load_other_weights, ALL),
    one("exact-gelu", "text", b.exact_gelu, TEXT),
    one("epsilon-1e-12", "text", b.set_epsilon(1e-12), TEXT),
    one("no-causal-mask", "text", e.drop_causal_mask, TEXT),
    one("shifted-causal-mask", "text", e.shift_causal_mask, TEXT),
    one("pooled-first-token", "text", e.pool_first, TEXT),
    one("pooled-last-token", "text", e.pool_last, TEXT),
    one("pooled-before-end", "text", e.pool_before_end, TEXT),
    one("pooled-mean", "text", e.pool_mean, TEXT),
    one("positions-off-by-one", "text", e.count_positions_from_one, TEXT, "from one"),
    one("no-positions", "text", e.drop_positions, TEXT),
    one("transposed-projection", "text", e.transpose_projection, TEXT),
    one("qkv-order-qvk", "text", b.read_packed_as("qvk"), TEXT),
    one("no-query-scale", "text", b.set_query_scale(0), TEXT),
    one("layers-reversed", "text", b.reverse_layers, TEXT),
    one("missing-last-layer", "text", b.drop_last_layer, FEATURES),
    one("no-ln-post", "text", e.skip("ln_final"), TEXT),
    one("no-projection", "text", e.drop_projection, TEXT, "square"),
)

# Exact GELU, heads that are not of 64, both projections square
VIT_GELU = (
    one("quick-gelu", "image", b.take_quick_gelu, IMAGE),
    one("quick-gelu", "both", b.take_quick_gelu, LOGITS),
    one("tanh-gelu", "text", b.tanh_gelu, TEXT),
    one("heads-of-64", "image", b.set_heads(1), IMAGE),
    one("heads-of-64", "text", b.set_heads(1), FEATURES),
    one("heads-8", "image", b.set_heads(8), IMAGE),
    one("transposed-projection", "image", e.transpose_projection, IMAGE),
    one("epsilon-1e-6", "both", b.set_epsilon(1e-6), ALL),
    one("missing-layer", "image", b.drop_second_layer, (*IMAGE, "image_hidden")),
)

RESNET = (
    one("batchnorm-training", "image", e.leave_in_training_mode, IMAGE),
    one("no-mean-token", "image", e.query_without_attending_to_mean, IMAGE, "not attended to"),
    one("no-mean-token", "image", e.query_with_first_cell, IMAGE, "first cell asks"),
    one("heads-8", "image", b.set_heads(8), IMAGE),
    one("no-positions", "image", e.drop_positions, IMAGE),
    one("no-query-scale", "image", b.set_query_scale(0), IMAGE),
    one("patches-transposed", "image", e.flatten_by_columns, IMAGE),
    one("no-biases", "image", b.drop_biases, IMAGE),
    one("no-projection", "image", e.drop_projection, IMAGE),
    one("channels-swapped", "image", i.swap_channels, FROM_PICTURES),
    one("mean-of-imagenet", "image", i.take_imagenet, FROM_PICTURES),
)

INPUTS = (
    one("channels-swapped", "image", i.swap_channels, PIXELS),
    one("mean-of-imagenet", "image", i.take_imagenet, PIXELS),
    one("mean-half", "image", i.take_half, FROM_PICTURES),
    one("no-normalisation", "image", i.skip_normalisation, (NHWC,)),
    one("no-normalisation", "image", i.skip_normalisation, FROM_PICTURES),
    one("pixels-0-255", "image", i.pass_bytes, FROM_PICTURES, "nothing applied"),
    one("pixels-0-255", "image", i.forget_255, PIXELS, "then normalised"),
    one("bilinear", "image", i.take_bilinear, PIXELS),
    one("bilinear", "image", i.take_bilinear, FROM_PICTURES),
    one("nearest", "image", i.take_nearest, FROM_PICTURES),
    one("no-antialias", "image", i.resize_without_antialias, PIXELS),
    one("no-antialias", "image", i.resize_without_antialias, FROM_PICTURES),
    one("crop-before-resize", "image", i.crop_before_resize, FROM_PICTURES),
    one("resize-squash", "image", i.squash, FROM_PICTURES),
    one("size-rounding", "image", i.round_sizes, PIXELS),
    one("size-rounding", "image", i.round_sizes, (*IMAGE, *FROM_PICTURES)),
    one("case-kept", "text", i.keep_case, TOKENS),
    one("case-kept", "text", i.keep_case, FROM_TEXTS),
    one("no-start-token", "text", i.drop_start, TOKENS),
    one("no-start-token", "text", i.drop_start, (*TEXT, *FROM_TEXTS)),
    one("no-end-token", "text", i.drop_end, FROM_TEXTS),
    one("padded-with-end", "text", i.pad_with_end, TOKENS),
    one("context-off", "text", i.shorten_context, TOKENS, "76"),
    one("context-off", "text", i.halve_context, FROM_TEXTS, "32"),
)

OUTPUTS = (
    one("scale-not-exponentiated", "logits", e.multiply_by_logarithm, LOGITS),
    one("scale-missing", "logits", e.forget_scale, LOGITS),
    one("softmax-axis", "logits", e.softmax_over_images, LOGITS, "over the images"),
    one("softmax-axis", "logits", e.transpose_logits, ALL, "transposed"),
)

SINGLES = (
    *(("vit", row) for row in (*VIT, *INPUTS, *OUTPUTS)),
    *(("vit-gelu", row) for row in VIT_GELU),
    ("vit-gelu", one("scale-clipped", "logits", e.clip_scale, ALL)),
    *(("resnet", row) for row in RESNET),
)

# Faulty programs in half precision: the fault is larger than the rounding
ROUNDED = (
    ("float16", one("exact-gelu", "image", b.exact_gelu, IMAGE)),
    ("float16", one("no-causal-mask", "text", e.drop_causal_mask, TEXT)),
    ("bfloat16", one("qkv-order-kqv", "image", b.read_packed_as("kqv"), IMAGE)),
    ("bfloat16", one("positions-off-by-one", "text", e.count_positions_from_one, TEXT, "from one")),
)

# At full size: what a user of a released model is likely to meet
_FULL_SLUGS = ("exact-gelu", "epsilon-1e-6", "no-ln-pre", "no-causal-mask", "qkv-order-kqv")
_FULL_SLUGS += ("positions-interpolated", "layers-swapped", "pooled-last-token", "no-biases")
_FULL_SLUGS += ("transposed-projection", "missing-last-layer")
FULL_SINGLES = (
    *(row for row in VIT if row[0].slug in _FULL_SLUGS),
    one("layers-swapped", "image", b.sort_layers_as_text, IMAGE, "0, 1, 10, 11, 2"),
    one("heads-8", "image", b.set_heads(8), IMAGE),
    *(row for row in INPUTS if row[1] == FROM_PICTURES),
    *OUTPUTS[:2],
)


def singles() -> list[Case]:
    """One fault each."""
    tiny = [Case(model, "fault", (planted,), tuple(keys)) for model, (planted, keys) in SINGLES]
    full = [Case("ViT-B/32", "fault", (planted,), tuple(keys)) for planted, keys in FULL_SINGLES]
    rounded = [
        Case("vit", "fault", (planted,), tuple(keys), dtype=dtype)
        for dtype, (planted, keys) in ROUNDED
    ]
    return [*tiny, *rounded, *full]
