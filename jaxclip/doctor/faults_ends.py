"""The table of faults: what enters the blocks, and what is read from them."""

from collections.abc import Iterable

from jaxclip.doctor.faults_blocks import TOWERS, TRANSFORMERS
from jaxclip.doctor.pitfall import Member, Pitfall, Place

MEANS = {
    "vit": ("mean", "mean of patches"),
    "resnet": ("mean", "mean of queries", "mean of patches"),
    "text": ("mean", "mean of text"),
    "bag": ("mean",),
}


def _means(place: Place) -> Iterable[Member]:
    return [Member({"pooled": pooled}) for pooled in MEANS[place.kind]]


def _patches(place: Place) -> Iterable[Member]:
    yield Member({"patches": "columns"})
    yield Member({"patches": "images"})
    if place.kind == "vit":
        yield Member({"positions": "transposed"})
        for how in ("inside", "channels first", "kernel upside down"):
            yield Member({"patches": how})


FAULTS = (
    Pitfall(
        "features-normalised",
        TOWERS,
        "the {side} features are divided by their length",
        ({"normalised": True},),
        sees="Cosines and logits are right, features have length one.",
        why="transformers' `image_embeds` and open_clip's `normalize=True` are normalised, the "
        "official `encode_image` is not.",
        fix="Say which ones you return: features or embeds.",
        test="The length of the features.",
    ),
    Pitfall(
        "no-projection",
        TOWERS,
        "the {side} features are not projected into the joint space",
        ({"projection": "none"},),
        sees="Features as wide as the tower; where both widths are equal, no error.",
        why="`pooler_output` of transformers is what comes before the projection.",
        fix="Multiply by `proj` or `text_projection`.",
        test="The width of the features, on a model where it differs from the tower's.",
    ),
    Pitfall(
        "transposed-projection",
        TOWERS,
        "the projection into the joint space is transposed",
        ({"projection": "transposed"},),
        sees="Features of the right size without any meaning.",
        why="`proj` and `text_projection` are used as `x @ proj`; as the weight of a linear layer "
        "they must be transposed. A square one fits both ways.",
        fix="`x @ proj`, or `Linear.weight = proj.T`.",
        test="A model whose projection is not square.",
    ),
    Pitfall(
        "no-ln-post",
        TRANSFORMERS,
        "the norm after the last block is missing",
        ({"ln_post": False},),
        sees="Features of another size, wrong in direction as well.",
        why="Hidden states come before it; `ln_post` of the image tower and `ln_final` of the text "
        "tower have different names.",
        fix="Apply `ln_post` (image) and `ln_final` (text) before the projection.",
        test="Features, with gains of the norm that are not one.",
    ),
    Pitfall(
        "no-ln-pre",
        ("vit",),
        "the norm before the first block is missing",
        ({"ln_pre": False},),
        sees="Features without any meaning: the first block sees tiny numbers.",
        why="No other vision transformer has one (section 2.4 of the paper).",
        fix="`ln_pre` comes after the positional embedding.",
        test="The input of the first block.",
    ),
    Pitfall(
        "pooled-first-token",
        ("text",),
        "the first token is read where the end of the text should be",
        ({"pooled": "first"},),
        sees="All texts have the same features: the start token sees nothing else.",
        why="BERT and the image tower read their first token.",
        fix="Read the row of the first end-of-text token.",
        test="Two texts must have different features.",
    ),
    Pitfall(
        "pooled-last-token",
        ("text", "vit", "resnet"),
        "the last position is read",
        ({"pooled": "last"},),
        sees="Features that depend on the padding; texts that fill the context are right.",
        why="Causal language models read `x[:, -1]`, and pad on the left.",
        fix="Text: the row of the first end-of-text token. Image: the class token, row 0.",
        test="A text that is shorter than the context.",
    ),
    Pitfall(
        "pooled-before-end",
        ("text",),
        "the token before the end of the text is read",
        ({"pooled": "before"},),
        sees="Features that resemble the right ones.",
        why="A length that does not count the marks.",
        fix="Read the row of the first end-of-text token: `tokens.argmax(-1)`.",
        test="One text at float32.",
    ),
    Pitfall(
        "pooled-after-end",
        ("text",),
        "the token after the end of the text is read",
        ({"pooled": "after"},),
        sees="Features that resemble the right ones; texts that fill the context are right.",
        why="A length used as an index.",
        fix="Read the row of the first end-of-text token: `tokens.argmax(-1)`.",
        test="One text at float32.",
    ),
    Pitfall(
        "pooled-mean",
        ("vit", "text", "resnet"),
        "the mean over tokens is read",
        _means,
        sees="Smooth features that work a little.",
        why="Sentence encoders and global average pooling do it so.",
        fix="Image: the class token. Text: the row of the first end-of-text token.",
        test="Features at float32.",
    ),
    Pitfall(
        "no-mean-token",
        ("resnet",),
        "the attention pool has no mean token",
        (
            {"mean_token": "none"},
            {"mean_token": "query alone"},
            {"mean_token": "none, first positions"},
            {"mean_token": "none, mean of queries"},
            {"mean_token": "mean of placed"},
            {"mean_token": "zero"},
            {"mean_token": "last"},
        ),
        sees="Features of the right size without any meaning.",
        why="The pool's only query is the mean of all cells, prepended to them; the positional "
        "embedding has a row for it.",
        fix="clip/model.py: AttentionPool2d, its second line.",
        test="The pool alone, on random cells.",
    ),
    Pitfall(
        "batchnorm-training",
        ("resnet",),
        "BatchNorm uses the statistics of the batch",
        ({"batch_norm": "batch"},),
        sees="Features of a picture change with the other pictures of its batch.",
        why="`model.eval()` was forgotten, or `use_running_average` is False.",
        fix="Use the running mean and variance.",
        test="One picture alone and in a batch: equal features.",
    ),
    Pitfall(
        "batchnorm-statistics-lost",
        ("resnet",),
        "BatchNorm has a mean of 0 and a variance of 1 in place of the running ones",
        ({"batch_norm": "none"},),
        sees="Features without any meaning.",
        why="Buffers are not parameters: a conversion of parameters alone leaves them fresh.",
        fix="Convert `running_mean` and `running_var`.",
        test="A model whose running statistics are not 0 and 1.",
    ),
    Pitfall(
        "positions-off-by-one",
        TOWERS,
        "the positional embedding is shifted by one",
        (
            {"positions": "one on"},
            {"positions": "one back"},
            {"positions": "one on, last repeated"},
            {"positions": "one back, first repeated"},
            {"positions": "one back, zero first"},
            {"positions": "one on, zero last"},
            {"positions": "patches one on"},
            {"positions": "patches one back"},
            {"positions": "class last"},
        ),
        sees="Features that resemble the right ones.",
        why="Some models number positions from 1 or 2 (RoBERTa, OPT); the class token takes row 0.",
        fix="Row 0 belongs to the class token, or to the start of the text.",
        test="The input of the first block.",
    ),
    Pitfall(
        "no-positions",
        TOWERS,
        "the positional embedding is not added",
        ({"positions": "none"}, {"positions": "class only"}, {"positions": "patches only"}),
        sees="Features that do not change when patches or words change places.",
        why="A parameter that is no layer is easily left out of a conversion.",
        fix="Add `positional_embedding` before the first norm.",
        test="Two texts of the same words in another order.",
    ),
    Pitfall(
        "positions-interpolated",
        ("vit",),
        "the positional embedding is resized where it fits",
        ({"positions": "stretched"}, {"positions": "shrunk"}, {"positions": "aligned corners"}),
        sees="Features that resemble the right ones.",
        why="Code for other resolutions runs always, or with a scale factor that rounds "
        "(`(w + 0.1) / w`, as DINO's code does).",
        fix="Resize only when the grid differs; give the size, not a factor.",
        test="The input of the first block at the trained size.",
    ),
    Pitfall(
        "class-token-last",
        ("vit",),
        "the class token stands after the patches",
        (
            {"class_token": "last", "pooled": "last"},
            {"class_token": "last"},
            {"class_token": "last", "positions": "class last"},
        ),
        sees="Features that resemble the right ones: each patch has the position of the next.",
        why="Appending is easier than prepending.",
        fix="Row 0 is the class token, for the positional embedding too.",
        test="The input of the first block.",
    ),
    Pitfall(
        "missing-class-token",
        ("vit",),
        "there is no class token",
        (
            {"class_token": "none"},
            {"class_token": "none", "pooled": "mean"},
            {"class_token": "zero"},
            {"class_token": "none", "positions": "first rows"},
            {"class_token": "none", "positions": "first rows", "pooled": "mean"},
        ),
        sees="One token less than the positional embedding has rows, or a token of zeros.",
        why="Towers that pool by a mean have none; `class_embedding` is no layer and easily left "
        "out of a conversion.",
        fix="Prepend `class_embedding` to the patches.",
        test="The number of tokens: one more than patches.",
    ),
    Pitfall(
        "patches-transposed",
        ("vit", "resnet"),
        "rows and columns of the picture or of its patches are swapped",
        _patches,
        sees="Features that resemble the right ones; pictures with a clear up and down suffer.",
        why="NCHW, NHWC and [h, w] against [w, h]: a square picture has no shape that shows it.",
        fix="Patches run row by row; the kernel is [out, c, h, w] in torch, [h, w, c, out] in JAX.",
        test="A picture that is not symmetric.",
    ),
    Pitfall(
        "channels-swapped",
        ("pixels", "vit", "resnet"),
        "red and blue are swapped",
        ({"channels": "bgr"},),
        sees="Accuracy a few points lower; colours are confused.",
        why="OpenCV reads pictures as blue, green, red.",
        fix="`cv2.cvtColor(image, cv2.COLOR_BGR2RGB)`.",
        test="A red square: the first channel must be the largest.",
    ),
)
