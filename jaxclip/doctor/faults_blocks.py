"""The table of faults: inside the blocks of a transformer or the stages of a ResNet."""

from collections.abc import Iterable

from jaxclip.doctor.pitfall import ACTIVATIONS, Member, Pitfall, Place

TRANSFORMERS = ("vit", "text")
TOWERS = ("vit", "resnet", "text")
SLUGS = {
    "gelu": "exact-gelu",
    "quick_gelu": "quick-gelu",
    "gelu_tanh": "tanh-gelu",
    "relu": "relu",
}


def _activation(name: str) -> Pitfall:
    def changes(place: Place) -> Iterable[Member]:
        return [Member({"activation": name})] if place.config.activation != name else []

    usual = {
        "gelu": "Most vision transformers use it, and open_clip's configs without `quick_gelu`.",
        "quick_gelu": "The released models use it; checkpoints trained later mostly do not.",
        "gelu_tanh": "It is the default of `jax.nn.gelu` and of several ports of BERT.",
        "relu": "It is the default of `torch.nn.TransformerEncoderLayer`.",
    }
    return Pitfall(
        SLUGS[name],
        TRANSFORMERS,
        f"the activation is {ACTIVATIONS[name]} where the checkpoint has {{activation}}",
        changes,
        sees="Features close to the right ones, a few points of accuracy lost; for the two exact "
        "forms of GELU only the fourth digit differs.",
        why=f"{usual[name]} A weights file does not say which it needs.",
        fix="Read the activation from the config; QuickGELU is `x * sigmoid(1.702 * x)`.",
        test="One block at float32 with a tolerance of 1e-5; 1e-2 lets every GELU pass.",
    )


def _epsilon(value: float, name: str, who: str) -> Pitfall:
    got = f"{name.removeprefix('epsilon-')} where CLIP has 1e-5"

    def members(place: Place) -> Iterable[Member]:
        yield Member({"epsilon": value})
        if place.kind in ("vit", "text"):  # as in KerasHub 0.32's text tower
            last = f"the epsilon of the {{side}} tower's last norm is {got}"
            yield Member({"last_epsilon": value}, sentence=last)

    return Pitfall(
        name,
        TOWERS,
        f"the epsilon of the norms is {got}",
        members,
        sees="Nearly the right features; the error is largest where activations are small, as at "
        "the first norm of the text tower.",
        why=f"It is the default of {who}; torch's is 1e-5.",
        fix="Pass `epsilon=1e-5` to every norm.",
        test="The first norm of the text tower on true token embeddings, whose variance is small.",
    )


def _heads(place: Place) -> Iterable[Member]:
    width, right = place.width, place.right.heads
    counts = [width // 64, *(width // k for k in (32, 80, 96, 128, 16, 8, 4) if width >= k)]
    counts += [8, 12, 16, 1, 2, 3, 4, 6, right * 2, right // 2]
    for heads in dict.fromkeys(counts):
        if heads > 0 and width % heads == 0 and heads != right:
            of_64 = heads == width // 64 and width % 64 == 0
            name = "heads-of-64" if of_64 else f"heads-{heads}"
            count = f"{heads} heads" if heads > 1 else "1 head"
            sentence = f"attention has {count} where the {{side}} tower has {{heads}}"
            yield Member({"heads": heads}, name, sentence)


def _qkv(place: Place) -> Iterable[Member]:
    for order in ("kqv", "qvk", "vkq", "vqk", "kvq"):
        yield Member(
            {"qkv": order},
            f"qkv-order-{order}",
            f"the packed projection is read as {', '.join(order)} where it holds q, k, v",
        )


def _biases(place: Place) -> Iterable[Member]:
    sets = ["attention output", "attention", "output"]
    if place.kind != "resnet":
        sets = ["attention output mlp", *sets, "mlp", "attention output mlp norms", "norms"]
    return [Member({"without": frozenset(parts.split())}) for parts in sets]


FAULTS = (
    _activation("gelu"),
    _activation("gelu_tanh"),
    _activation("quick_gelu"),
    _activation("relu"),
    _epsilon(1e-6, "epsilon-1e-6", "Flax and timm"),
    _epsilon(1e-12, "epsilon-1e-12", "BERT and ViT in transformers"),
    _epsilon(1e-3, "epsilon-1e-3", "Keras"),
    Pitfall(
        "heads-of-64",
        TOWERS,
        "attention has heads of 64 channels where the {side} tower has {heads} heads",
        _heads,
        sees="Shapes fit and no error is raised; attention mixes channels of different heads.",
        why="The released models have heads of 64, so ports write `width // 64`; other checkpoints "
        "have 80, 88 or 104 channels a head. With another number it is called `heads-N`.",
        fix="Read the number of heads from the config; no tensor's shape shows it.",
        test="A model whose heads have another width than 64.",
    ),
    Pitfall(
        "qkv-order-kqv",
        TOWERS,
        "the packed projection is read in another order than q, k, v",
        _qkv,
        sees="Features of the right size that have nothing to do with the picture; q and k swapped "
        "change the least.",
        why="One matrix holds q, k and v; programs that keep three, or pack them in another order "
        "(k, q, v in some TensorFlow code), split it wrongly. All six orders are tried.",
        fix="Split the rows of torch's `in_proj_weight` in three: q, k, v.",
        test="One attention layer with random weights; equal q and k would hide it.",
    ),
    Pitfall(
        "qkv-interleaved",
        TRANSFORMERS,
        "the packed projection is split into heads before it is split into q, k and v",
        ({"qkv": "interleaved"}, {"qkv": "heads last"}),
        sees="As with q, k, v in the wrong order.",
        why="`reshape(n, l, heads, 3, k)` (GPT-NeoX's layout) and `reshape(n, l, 3, heads, k)` "
        "have the same size.",
        fix="Split in three first, then each into heads: `reshape(n, l, 3, heads, k)`.",
        test="One attention layer with two heads or more.",
    ),
    Pitfall(
        "transposed-qkv",
        TOWERS,
        "the projections of q, k and v are transposed",
        ({"transposed": "qkv"},),
        sees="Features of the right size that have nothing to do with the picture.",
        why="torch keeps linear weights as [out, in], JAX and Keras as [in, out]; the square ones "
        "fit both ways.",
        fix="Transpose every linear weight on conversion, the square ones too.",
        test="Convert with widths that are all different: then a missing transpose cannot fit.",
    ),
    Pitfall(
        "transposed-attention-output",
        TRANSFORMERS,
        "the projection after attention is transposed",
        ({"transposed": "attention output"},),
        sees="Features of the right size that drift further with every block.",
        why="`out_proj.weight` is square, so that no shape shows the missing transpose.",
        fix="Transpose `out_proj.weight` as every linear weight.",
        test="One block with random weights against torch's `MultiheadAttention`.",
    ),
    Pitfall(
        "heads-not-moved",
        TRANSFORMERS,
        "the heads are not moved back before they are joined",
        ({"joined": False},),
        sees="Features of the right size; positions and channels are mixed.",
        why="[n, heads, l, k] reshaped to [n, l, d] without the transpose has the right size.",
        fix="Transpose to [n, l, heads, k] before the reshape.",
        test="One attention layer with two heads or more.",
    ),
    Pitfall(
        "no-query-scale",
        TOWERS,
        "attention scores are not scaled",
        ({"query_power": 0.0},),
        sees="Attention looks at single tokens; features still resemble the right ones a little.",
        why="`scaled_dot_product_attention` and einsum code differ in who scales.",
        fix="Multiply the scores, or q, by `head_width ** -0.5` once.",
        test="One attention layer with scores well above 1.",
    ),
    Pitfall(
        "double-query-scale",
        TOWERS,
        "attention scores are scaled twice",
        ({"query_power": -1.0},),
        sees="Attention is close to a plain mean.",
        why="q is scaled by hand and once more by the library's attention function.",
        fix="Multiply the scores, or q, by `head_width ** -0.5` once.",
        test="One attention layer with scores well above 1.",
    ),
    Pitfall(
        "query-scale-of-width",
        TOWERS,
        "attention scores are scaled by the width of the tower instead of that of a head",
        ({"scaled_by": "width"},),
        sees="Attention is closer to a plain mean than it should be.",
        why="`d ** -0.5` in the paper of the transformer is the width of one head.",
        fix="Scale by `(width // heads) ** -0.5`.",
        test="One attention layer with two heads or more.",
    ),
    Pitfall(
        "no-causal-mask",
        ("text",),
        "the text tower has no causal mask",
        ({"mask": "none"},),
        sees="Features change with the padding; retrieval works, but worse.",
        why="Encoders usually have none; CLIP's text tower is a decoder that is read at its end.",
        fix="Mask the scores above the diagonal with minus infinity.",
        test="Change a token after the end of the text: the features must stay.",
    ),
    Pitfall(
        "shifted-causal-mask",
        ("text",),
        "the causal mask is shifted by one token",
        ({"mask": "ahead"}, {"mask": "behind, first sees all"}, {"mask": "behind"}),
        sees="Small differences, or NaN at the first token.",
        why="`triu(1)` and `triu(0)`, strict and not, are confused.",
        fix="A token sees itself and what comes before: `tril()` is true where it may look.",
        test="Hidden states of the first two tokens.",
    ),
    Pitfall(
        "reversed-causal-mask",
        ("text",),
        "the causal mask is upside down: tokens see what follows",
        ({"mask": "backwards"},),
        sees="The end of the text sees padding only; all texts look alike.",
        why="True means masked in some libraries and visible in others.",
        fix="Look up what True means; print the mask of three tokens.",
        test="Change a word: the features must change.",
    ),
    Pitfall(
        "causal-image-tower",
        ("vit",),
        "the image tower has a causal mask",
        ({"mask": "causal"},),
        sees="The class token, which comes first, sees only itself: every picture gives the same.",
        why="Both towers share one block class, whose default is causal.",
        fix="Pass no mask in the image tower.",
        test="Two pictures must have different features.",
    ),
    Pitfall(
        "post-norm",
        TRANSFORMERS,
        "the norms stand after each residual sum instead of before each branch",
        ({"placement": "post"},),
        sees="Features of a normal size without any meaning.",
        why="It is the default of `torch.nn.TransformerEncoderLayer` (`norm_first=False`).",
        fix="`x + attention(ln_1(x))`, then `x + mlp(ln_2(x))`.",
        test="One block with random gains in both norms.",
    ),
    Pitfall(
        "parallel-blocks",
        TRANSFORMERS,
        "attention and MLP read the same input instead of one after the other",
        ({"placement": "parallel"},),
        sees="Features that resemble the right ones.",
        why="GPT-J and PaLM do it so.",
        fix="`x + attention(ln_1(x))` first; the MLP reads the sum.",
        test="One block.",
    ),
    Pitfall(
        "no-biases",
        TOWERS,
        "biases are not added",
        _biases,
        sees="Features near the right ones for a young model, far off for a trained one.",
        why="`use_bias=False`, or a conversion that maps weights only.",
        fix="Compare the list of names: each linear layer of a block has a bias.",
        test="A model whose biases are not zero: fresh weights hide it.",
    ),
)
