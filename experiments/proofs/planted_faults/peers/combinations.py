"""Two faults at once, faults outside of every family, and sound implementations."""

from collections.abc import Sequence
from functools import partial

from experiments.proofs.planted_faults.peers import block_faults as b
from experiments.proofs.planted_faults.peers import end_faults as e
from experiments.proofs.planted_faults.peers import input_faults as i
from experiments.proofs.planted_faults.peers.block_faults import Fault
from experiments.proofs.planted_faults.peers.catalogue import (
    ALL,
    FEATURES,
    FROM_PICTURES,
    IMAGE,
    PIXELS,
    TEXT,
    TOKENS,
    Case,
    singles,
)
from experiments.proofs.planted_faults.peers.catalogue import Planted as P
from experiments.proofs.planted_faults.peers.implementations import sound

Pairs = tuple[tuple[str, P, P, Sequence[str]], ...]
EXACT = P("exact-gelu", "image", b.exact_gelu)
PAIRS: Pairs = (
    ("vit", EXACT, P("no-causal-mask", "text", e.drop_causal_mask), FEATURES),
    ("vit", EXACT, P("epsilon-1e-6", "image", b.set_epsilon(1e-6)), IMAGE),
    ("vit", EXACT, P("positions-interpolated", "image", e.interpolate_positions), IMAGE),
    (
        "vit",
        P("no-query-scale", "text", b.set_query_scale(0)),
        P("pooled-mean", "text", e.pool_mean),
        TEXT,
    ),
    (
        "vit",
        P("exact-gelu", "both", b.exact_gelu),
        P("features-normalised", "both", e.normalise_features),
        FEATURES,
    ),
    (
        "vit",
        P("positions-off-by-one", "text", e.count_positions_from_one, "from one"),
        P("case-kept", "text", i.keep_case),
        (*TOKENS, *TEXT),
    ),
    (
        "vit",
        P("channels-swapped", "image", i.swap_channels),
        P("mean-of-imagenet", "image", i.take_imagenet),
        FROM_PICTURES,
    ),
    (
        "vit",
        P("bilinear", "image", i.take_bilinear),
        P("mean-half", "image", i.take_half),
        PIXELS,
    ),
    ("vit", P("resize-squash", "image", i.squash), EXACT, (*PIXELS, *IMAGE)),
    (
        "vit",
        # not with a causal mask: the class token, the first, then attends to itself alone
        P("qkv-order-kqv", "image", b.read_packed_as("kqv")),
        P("layers-swapped", "image", b.swap_layers),
        IMAGE,
    ),
    (
        "vit",
        P("missing-last-layer", "image", b.drop_last_layer),
        P("no-ln-post", "image", e.skip("ln_post")),
        IMAGE,
    ),
    (
        "vit",
        P("layers-reversed", "text", b.reverse_layers),
        P("pooled-last-token", "text", e.pool_last),
        TEXT,
    ),
    (
        "vit",
        P("no-start-token", "text", i.drop_start),
        P("no-end-token", "text", i.drop_end),
        TOKENS,
    ),
    (
        "vit",
        P("scale-not-exponentiated", "logits", e.multiply_by_logarithm),
        P("exact-gelu", "both", b.exact_gelu),
        ALL,
    ),
    (
        "vit",
        P("patches-transposed", "image", e.flatten_by_columns),
        P("no-ln-pre", "image", e.skip("ln_pre")),
        IMAGE,
    ),
    (
        "vit",
        P("no-biases", "image", b.drop_biases),
        P("double-query-scale", "image", b.set_query_scale(-1)),
        IMAGE,
    ),
    (
        "vit",
        P("crop-before-resize", "image", i.crop_before_resize),
        P("nearest", "image", i.take_nearest),
        FROM_PICTURES,
    ),
    (
        "vit",
        P("nearest", "image", i.take_nearest),
        P("no-normalisation", "image", i.skip_normalisation),
        FROM_PICTURES,
    ),
    (
        "vit-gelu",
        P("quick-gelu", "image", b.take_quick_gelu),
        P("heads-of-64", "image", b.set_heads(1)),
        IMAGE,
    ),
    (
        "vit-gelu",
        P("quick-gelu", "both", b.take_quick_gelu),
        P("transposed-projection", "text", e.transpose_projection),
        FEATURES,
    ),
    (
        "vit-gelu",
        P("heads-of-64", "text", b.set_heads(1)),
        P("shifted-causal-mask", "text", e.shift_causal_mask),
        TEXT,
    ),
    (
        "vit-gelu",
        P("epsilon-1e-12", "image", b.set_epsilon(1e-12)),
        P("tanh-gelu", "image", b.tanh_gelu),
        IMAGE,
    ),
    (
        "resnet",
        P("batchnorm-training", "image", e.leave_in_training_mode),
        P("no-mean-token", "image", e.query_with_first_cell),
        IMAGE,
    ),
    (
        "resnet",
        P("channels-swapped", "image", i.swap_channels),
        P("batchnorm-training", "image", e.leave_in_training_mode),
        FROM_PICTURES,
    ),
    (
        "resnet",
        P("no-positions", "image", e.drop_positions),
        P("exact-gelu", "text", b.exact_gelu),
        FEATURES,
    ),
)

UNKNOWN: tuple[tuple[str, str, str, Fault, Sequence[str]], ...] = (
    ("resnet", "padding of the stem on one side", "image", e.pad_stem_on_one_side, IMAGE),
    ("resnet", "maximum for mean in the stem's pool", "image", e.pool_stem_by_maximum, IMAGE),
    ("vit", "one shortcut missing", "image", e.drop_residual, (*IMAGE, "image_hidden")),
    ("vit", "dropout left on", "text", e.leave_dropout_on, TEXT),
    ("vit", "values of the last block times 1.1", "image", e.scale_values, IMAGE),
)

SOUND = (  # model, peer, number format, threads
    ("vit", "official code", "float32", 1),
    ("vit", "official code", "float32", 2),
    ("vit", "official code", "float16", 1),
    ("vit", "official code", "bfloat16", 2),
    ("resnet", "official code", "float32", 1),
    ("resnet", "official code", "float16", 2),
    ("resnet", "official code", "bfloat16", 1),
    ("vit", "open_clip", "float32", 1),
    ("vit-gelu", "open_clip", "float32", 2),
    ("vit-gelu", "open_clip", "float16", 1),
    ("vit-gelu", "open_clip", "bfloat16", 1),
    ("resnet", "open_clip", "float32", 2),
    ("resnet", "open_clip", "bfloat16", 2),
    ("vit", "transformers", "float32", 1),
    ("vit-gelu", "transformers", "float32", 2),
    ("vit", "transformers", "float16", 1),
    ("vit-gelu", "transformers", "bfloat16", 2),
    ("vit", "the exam's own", "float32", 2),
    ("resnet", "the exam's own", "float16", 1),
    ("vit-gelu", "the exam's own", "bfloat16", 1),
    ("vit", "jaxclip", "float32", 1),
    ("vit", "jaxclip", "bfloat16", 2),
    ("resnet", "jaxclip", "float32", 1),
    ("resnet", "jaxclip", "bfloat16", 1),
)
FULL_PAIRS: Pairs = tuple(("ViT-B/32", *pair[1:]) for pair in PAIRS if pair[0] == "vit")[:6]
FULL_SOUND = (
    ("ViT-B/32", "official code", "float32", 1),
    ("ViT-B/32", "official code", "float16", 2),
    ("ViT-B/32", "open_clip", "float32", 2),
    ("ViT-B/32", "open_clip", "bfloat16", 2),
    ("ViT-B/32", "transformers", "float32", 2),
    ("ViT-B/32", "jaxclip", "bfloat16", 2),
)


def pairs() -> list[Case]:
    """Two faults each."""
    return [
        Case(model, "pair", (first, second), tuple(keys))
        for model, first, second, keys in (*PAIRS, *FULL_PAIRS)
    ]


def unknown() -> list[Case]:
    """Faults that no list can have: the right answer is that the difference is unknown."""
    return [
        Case(model, "unknown", (P(what, tower, plant),), tuple(keys))
        for model, what, tower, plant, keys in UNKNOWN
    ]


def sound_programs() -> list[Case]:
    """Programs without a fault."""
    return [
        Case(
            model,
            "sound",
            (),
            ALL,
            f"{peer}, {dtype}, {threads} thread{'s' * (threads > 1)}",
            threads,
            partial(sound, model, peer, dtype),
        )
        for model, peer, dtype, threads in (*SOUND, *FULL_SOUND)
    ]


def cases() -> list[Case]:
    """The whole exam; names are unique."""
    found = [*singles(), *pairs(), *unknown(), *sound_programs()]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)
    return found
