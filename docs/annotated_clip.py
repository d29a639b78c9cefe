# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The annotated CLIP
#
# Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
# ([arXiv 2103.00020](https://arxiv.org/abs/2103.00020)), as a program. Keep the paper open beside
# it. Each chapter has the sentence of the paper, the equation, about ten lines of code, a picture,
# and a check that two ways to compute the same thing agree. Each check also computes a deliberate
# mistake and shows that it would have noticed: a check that cannot fail shows nothing.
#
# The page imports the code of this repository and never copies it. It needs no network, no graphics
# card and no weights but those in the repository. Three ways to run it:
#
# ```
# pip install -e .                # in a fresh environment, at the repository's root
# python docs/annotated_clip.py   # as a program: pictures go to runs/annotated
#
# pip install -e '.[docs]'        # jupytext and Jupyter's tools
# python -m experiments.annotate  # one HTML page and a notebook, in runs/annotated
#
# jupytext --to notebook --output annotated_clip.ipynb docs/annotated_clip.py   # to run in Jupyter
# ```
#
# Chapter 10 trains a model for about five minutes on two cores. `ANNOTATED_MINUTES=1` in the
# environment (or `--minutes 1` with `experiments.annotate`) makes it shorter.
#
# Shapes stand in brackets: `n` pairs, `h w c` picture, `p` patches, `l` or `m` tokens, `d` width,
# `a` heads, `k` width of a head, `e` width of the joint space. `exp(t)` is the factor on the
# cosines; the paper writes τ for what divides them.
#
# First, three helpers: one shows a picture, one compares, one puts drawings under an axis.

# %% jupyter={"source_hidden": true}
import io
import os
from pathlib import Path

DEVICES = 4  # virtual ones, for chapter 12; they must be asked for before jax is imported
MINUTES = float(os.environ.get("ANNOTATED_MINUTES", "5"))  # of training in chapter 10
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={DEVICES}"

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

PICTURES = Path("runs/annotated")


def show(figure, name, alt):
    """Show a picture in a notebook, with `alt` for who cannot see it; else write a file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    try:
        get_ipython()  # defined by Jupyter
    except NameError:
        PICTURES.mkdir(parents=True, exist_ok=True)
        (PICTURES / f"{name}.png").write_bytes(content.getvalue())
        print(f"[picture {PICTURES / name}.png: {alt}]")
    else:
        from IPython.display import Image as NotebookImage
        from IPython.display import display

        display(NotebookImage(content.getvalue(), alt=alt))


def check(what, got, expected, tolerance, mistake):
    """Assert that `got` is `expected` within `tolerance`, and that `mistake` is not.

    The measure: the largest difference, over the largest expected value.
    """

    def departure(other):
        return np.abs(np.asarray(other, np.float64) - expected).max() / largest

    expected = np.asarray(expected, np.float64)
    largest = np.abs(expected).max() or 1.0
    right, wrong = departure(got), departure(mistake)
    print(f"{what}: apart by {right:.1e}, allowed {tolerance:.0e}; the mistake: {wrong:.1e}")
    assert right <= tolerance < wrong, (what, right, tolerance, wrong)


def draw_under(axes, pictures):
    """Small pictures [n, h, w, 3] under the columns of a matrix, instead of numbers."""
    axes.set_xticks([])
    for i, picture in enumerate(pictures):
        inset = axes.inset_axes(
            [i / len(pictures), -1.15 / len(pictures), *[1 / len(pictures)] * 2]
        )
        inset.imshow(picture)
        inset.axis("off")


np.set_printoptions(precision=3, suppress=True)
print(f"jax {jax.__version__}, {jax.device_count()} virtual devices, {MINUTES:g} minutes to train")
assert jax.device_count() >= DEVICES

# %% [markdown]
# ## 1. Bytes to tokens
#
# > The transformer operates on a lower-cased byte pair encoding (BPE) representation of the text
# > with a 49,152 vocab size ...
# >
# > Section 2.4
#
# A word is split into bytes, the last one marked as the end of the word. Then, as long as any two
# neighbours have been merged in the training of the tokenizer, the pair that was merged first is
# joined:
#
# $$(x_i, x_{i+1}) \to x_i x_{i+1}, \qquad
# i = \operatorname{argmin}_j \operatorname{rank}(x_j, x_{j+1})$$
#
# The tokenizer's data is only the list of these merges, best first. So ten lines are enough; they
# are slow (quadratic in the length of the word), and that is why the project's own are longer.

# %%
import gzip
from importlib.resources import files
from itertools import pairwise

from jaxclip.data.emoji.pictures import load_emoji, load_unseen_artist
from jaxclip.tokenizer import END_OF_TEXT, START_OF_TEXT, VOCAB_SIZE, decode, encode, tokenize

stored = (files("jaxclip") / "data_files" / "bpe_merges.txt.gz").read_bytes()
merges = [tuple(line.split(" ")) for line in gzip.decompress(stored).decode().splitlines()]
rank = {pair: number for number, pair in enumerate(merges)}


def byte_pairs(word):
    """The tokens of an ASCII word, as text."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while known := [pair for pair in pairwise(parts) if pair in rank]:
        best = min(known, key=rank.get)
        at = list(pairwise(parts)).index(best)
        parts[at : at + 2] = ["".join(best)]
    return parts


print(merges[:6], "... of", len(merges))
for word in ("cat", "rocketship", "unpredictability"):
    print(word, byte_pairs(word), encode(word))

# %% [markdown]
# An id is a position: 256 single bytes, the same 256 at the end of a word, one a merge, and the two
# marks that the paper calls [SOS] and [EOS]. A text becomes a row of 77: mark, text, mark, zeros.
# Zero is also the id of "!", so padding is known by its place after the end mark alone.
#
# Other alphabets and emoji are several bytes a character, so nothing is unknown to the tokenizer;
# it is only longer.

# %%
texts = ["a photo of a cat", "Rocketship!", "naïve café", "🚀"]
rows = tokenize(texts, context_length=12)  # [n, l]
print(rows)

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(9, 2.6), layout="constrained")
axes = figure.add_subplot()
kind = np.where(rows == START_OF_TEXT, 0.3, np.where(rows == END_OF_TEXT, 0.6, 0.1))
after_end = np.arange(rows.shape[1]) > rows.argmax(1, keepdims=True)
axes.imshow(np.where(after_end, 0.0, kind), cmap="Blues", vmin=0, vmax=1, aspect="auto")
for (i, j), token in np.ndenumerate(rows):
    piece = {START_OF_TEXT: "start", END_OF_TEXT: "end"}.get(token, decode([token]))
    shown = "" if after_end[i, j] else piece.replace("🚀", "(a rocket)")
    axes.text(j, i - 0.18, shown, ha="center", va="center", fontsize=9)
    axes.text(j, i + 0.22, token, ha="center", va="center", fontsize=7, color="dimgrey")
axes.set_yticks(range(len(texts)), ["a photo of a cat", "Rocketship!", "naïve café", "(a rocket)"])
axes.set_xticks([])
axes.set_title("each text as a row: tokens above, ids below", fontsize=10)
show(figure, "01-tokens", "Four texts as rows of tokens with their ids between start and end marks")

# %% [markdown]
# **The check.** Ten lines against the project's tokenizer, on every plain word in the names of the
# drawings. The mistake is to take the longest known token from the left, which looks like the same
# thing and is not.

# %%
names = {word.lower() for name in load_emoji("train").names for word in name.split()}
words = sorted(word for word in names if word.isascii() and word.isalpha())
known = {"".join(pair): 512 + number for number, pair in enumerate(merges)}
letters = {chr(33 + i) + end: i + 256 * bool(end) for i in range(94) for end in ("", "</w>")}
known |= letters


def longest_first(word):
    marked, parts = word + "</w>", []
    while marked:
        size = max(n for n in range(1, len(marked) + 1) if marked[:n] in known)
        parts, marked = [*parts, marked[:size]], marked[size:]
    return parts


def different(tokens_of):
    return sum([known[part] for part in tokens_of(word)] != encode(word) for word in words)


mistake = different(longest_first)
check(f"wrong words of {len(words)}", different(byte_pairs), 0, tolerance=0, mistake=mistake)

# %% [markdown]
# **Read next in the source:** `jaxclip.tokenizer`

# %% [markdown]
# ## 2. A picture to patches
#
# > We closely follow their implementation with only the minor modification of adding an additional
# > layer normalization to the combined patch and position embeddings before the transformer.
# >
# > Section 2.4, on the Vision Transformer
#
# A transformer reads a row of vectors. A picture becomes one by cutting it into squares, each
# multiplied by the same matrix $E$; a learned class vector comes first, a learned position is added
# to each, and then comes the layer normalisation that the sentence is about:
#
# $$z_0 = \mathrm{LN}\left([x_{\mathrm{class}};\, x_1 E;\, \dots;\, x_p E] +
# E_{\mathrm{pos}}\right)$$
#
# Before that, the picture is resized so that its short side fits, cropped, and each colour is
# shifted and divided by a mean and a deviation that are CLIP's own.

# %%
from PIL import Image

from jaxclip import reference
from jaxclip.images.preprocess import Preprocess

NAMES = ["fox", "rocket", "red apple", "octopus", "automobile", "cactus", "guitar", "penguin"]
unseen = load_unseen_artist()  # 1,556 drawings by an artist that the embedded model has not seen
preprocess = Preprocess(size=64)
drawings = [Image.fromarray(unseen.images[unseen.names.index(name)]) for name in NAMES]
pixels = np.stack([preprocess.safe(drawing) for drawing in drawings])  # [n, h, w, c]
seen = np.stack([preprocess.denormalise(picture) for picture in pixels])  # the same, to look at

patch = 16
patches = reference.patchify(pixels, patch)  # [n, p, patch * patch * c]
kernel = np.random.default_rng(0).normal(size=(patch, patch, 3, 32))  # E, of a ViT of width 32
embedded = patches @ kernel.reshape(-1, 32)  # [n, p, d]
print(f"pixels {pixels.shape}, patches {patches.shape}, embedded {embedded.shape}")

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(8, 3.2), layout="constrained")
left, right = figure.subfigures(1, 2)
axes = left.add_subplot()
axes.imshow(seen[1])
axes.axis("off")
left.suptitle("64 x 64 pixels", fontsize=10)
for number, axes in enumerate(right.subplots(4, 4).flat):
    axes.imshow(preprocess.denormalise(patches[1, number].reshape(patch, patch, 3)))
    axes.set_xticks([]), axes.set_yticks([])
    axes.set_title(number + 1, fontsize=7, pad=1)
right.suptitle("16 patches, row by row", fontsize=10)
show(figure, "02-patches", "A drawing of a rocket, and the same cut into sixteen numbered squares")

# %% [markdown]
# **The check.** The released code has no `patchify`: it uses a convolution whose stride is its
# size. That is the same product. The mistake is to number the patches column by column, which every
# shape check would let pass.

# %%
convolved = jax.lax.conv_general_dilated(
    *(jnp.asarray(x, jnp.float32) for x in (pixels, kernel)),
    window_strides=(patch, patch),
    padding="VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)  # [n, 4, 4, d]
by_columns = convolved.swapaxes(1, 2)
flat = [x.reshape(embedded.shape) for x in (convolved, by_columns)]
check("patches and a convolution", flat[0], embedded, 1e-5, mistake=flat[1])

# %% [markdown]
# **Read next in the source:** `jaxclip.images.preprocess`, `jaxclip.models.vit`

# %% [markdown]
# ## 3. Attention
#
# > Masked self-attention was used in the text encoder to preserve the ability to initialize with a
# > pre-trained language model or add language modeling as an auxiliary objective ...
# >
# > Section 2.4
#
# Every token makes a query, a key and a value. The product of a query with all keys says how much
# each other token counts, the softmax makes shares of it, and the result is that mixture of values:
#
# $$\mathrm{attention}(Q, K, V) = \mathrm{softmax}\left(\frac{Q K^T}{\sqrt{k}} + M\right) V$$
#
# In the text tower $M$ is minus infinity above the diagonal, so a token sees only what stands
# before it. In the image tower there is no $M$. We take a small model with random weights and
# compute the first block's weights from the stem (what the first block reads) by the equation.

# %%
from jaxclip.checkpoint import nest
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.models.clip import Clip
from jaxclip.models.parameters import to_flat

small = ClipConfig(
    VisionConfig(image_size=64, patch_size=16, width=48, layers=3, heads=4),
    TextConfig(width=48, layers=3, heads=4, context_length=16),
    embed_dim=32,
)
model = Clip.from_config(small, key=1)
params = nest({name: np.float64(x) for name, x in to_flat(model).items()})  # official names
tokens = tokenize(["a photo of a cat on a red mat", *NAMES[:7]], context_length=16)  # [n, l]

_, seen_by_text = model.text.stages(jnp.asarray(tokens))  # what the tower computes on its way
block = params["text"]["transformer"]["resblocks"]["0"]
x = reference.layer_norm(np.float64(seen_by_text["stem"]), **block["ln_1"])  # [n, l, d]
qkv = x @ block["attn"]["in_proj_kernel"] + block["attn"]["in_proj_bias"]  # [n, l, 3d]
q, k, v = np.moveaxis(qkv.reshape(8, 16, 3, 4, 12), (2, 3), (0, 2))  # 3 times [n, a, l, k]
scores = q @ k.swapaxes(-1, -2) / np.sqrt(12)  # [n, a, l, m]
mask = np.where(np.tri(16, dtype=bool), 0, -np.inf)  # M
weights = reference.softmax(scores + mask, axis=-1)  # each row sums to 1

# %% [markdown]
# The weights of a trained model say more. The model embedded in this repository is a ResNet, which
# has one attention of its own, in place of the last average:
#
# > The attention pooling is implemented as a single layer of "transformer-style" multi-head QKV
# > attention where the query is conditioned on the global average-pooled representation of the
# > image.
# >
# > Section 2.4
#
# Its weights say where the model looks. At 64 pixels, where it was trained, its last grid is 2 x 2.
# Loaded for 256 pixels, with interpolated positions, it is 8 x 8, and rough: it looks at corners
# and edges of the drawing, and at some of the empty paper.

# %%
import jaxclip
from jaxclip.evaluation.attention import attention_map

larger, at_256 = jaxclip.load("emoji", image_size=256)
big = np.stack([at_256.safe(drawing) for drawing in drawings[:4]])
where = np.asarray(attention_map(larger, jnp.asarray(big)))  # [n, rows, columns]

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(9, 5.6), layout="constrained")
grid = figure.add_gridspec(2, 12, height_ratios=[1.4, 1])
pieces = ["start", *(decode([token]).strip() for token in tokens[0, 1:10]), "end"]
size = len(pieces)
parts = {"scores": scores, "scores + M": scores + mask, "weights: softmax of each row": weights}
for i, (title, matrix) in enumerate(parts.items()):
    axes = figure.add_subplot(grid[0, 4 * i : 4 * i + 4])
    axes.imshow(matrix[0, 0, :size, :size], cmap="viridis")
    axes.set_xticks(range(size), pieces, rotation=90, fontsize=7)
    axes.set_yticks(range(size), pieces if i == 0 else [""] * size, fontsize=7)
    axes.set_title(title, fontsize=10)
for i in range(4):
    axes = figure.add_subplot(grid[1, 3 * i : 3 * i + 3])
    axes.imshow(at_256.denormalise(big[i]), extent=(0, 1, 0, 1))
    axes.imshow(where[i], extent=(0, 1, 0, 1), alpha=0.5, cmap="inferno", interpolation="bilinear")
    axes.axis("off")
    axes.set_title(f"{NAMES[i]}: where the pool looks", fontsize=9)
show(figure, "03-attention", "Causal attention of one head, and attention maps over four drawings")

# %% [markdown]
# **The check.** The weights by the equation, in float64, against those of the model's own first
# block. The mistake is to leave the mask out.

# %%
tapped = seen_by_text["attention"][0]  # of the first block, [n, a, l, m]
check("attention weights", tapped, weights, 1e-5, mistake=reference.softmax(scores, axis=-1))

# %% [markdown]
# **Read next in the source:** `jaxclip.models.layers`, `jaxclip.evaluation.attention`

# %% [markdown]
# ## 4. The two towers
#
# > ... the activations of the highest layer of the transformer at the [EOS] token are treated as
# > the feature representation of the text which is layer normalized and then linearly projected
# > into the multi-modal embedding space.
# >
# > Section 2.4
#
# Both transformers are a stack of the same block, an attention and a two-layer perceptron, each
# added to what came in; the norm comes first inside each branch:
#
# $$x \leftarrow x + \mathrm{attention}(\mathrm{LN}(x)), \qquad
# x \leftarrow x + \mathrm{mlp}(\mathrm{LN}(x))$$
#
# Then one row is picked and projected, $I_f = \mathrm{LN}(x_{\mathrm{class}}) W_i$ and $T_f =
# \mathrm{LN}(x_{\mathrm{EOS}}) W_t$. The end mark has the largest of all ids, so its place is an
# argmax. Here are both towers twice: in Flax, and in NumPy with 64 bits.

# %%
image_features = model.encode_image(pixels)  # [n, e]
text_features = model.encode_text(tokens)  # [n, e]
judged = [
    reference.vision_transformer(np.float64(pixels), params["visual"], heads=4),
    reference.text_transformer(tokens, params["text"], heads=4),
]
other = [
    reference.vision_transformer(np.float64(pixels), params["visual"], heads=4, activation="gelu"),
    reference.text_transformer(tokens, params["text"], heads=4, activation="gelu"),
]

# %% [markdown]
# Where do the parameters of the released models lie? Two fifths of the text tower of ViT-B/32 are
# its table of tokens; with the rest it is the "63M-parameter 12-layer 512-wide model" of section
# 2.4.

# %%
from jaxclip import shapes
from jaxclip.config import RELEASED

parts = {"text: tokens": "text.token_embedding", "text: the rest": "text.", "image": "visual."}
counts = {}  # {model: numbers a part, in millions}
for name, config in RELEASED.items():
    sizes = {path: int(np.prod(shape)) for path, shape in shapes.parameters(config).items()}
    sizes = {path: n for path, n in sizes.items() if not path.endswith((".mean", ".var"))}
    found = [sum(n for path, n in sizes.items() if path.startswith(p)) for p in parts.values()]
    counts[name] = np.array([found[0], found[1] - found[0], found[2]]) / 1e6

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(8, 3.2), layout="constrained")
axes = figure.add_subplot()
left = np.zeros(len(counts))
for part, values in zip(parts, np.array(list(counts.values())).T, strict=True):
    axes.barh(list(counts), values, left=left, label=part)
    left += values
axes.set_xlabel("parameters, millions")
axes.invert_yaxis()
axes.legend()
show(figure, "04-parameters", "Parameters of the nine released models: token table, text, image")

# %% [markdown]
# **The check.** Flax in 32 bits against NumPy in 64. The mistake is the other GELU, which is 0.02
# away at most and yet is seen at once. Then the text tower's size. And one more property that the
# mask gives for nothing: what follows the end mark cannot matter. The mistake there is to change a
# token before it.

# %%
check("image tower", image_features, judged[0], 5e-6, mistake=other[0])
check("text tower", text_features, judged[1], 5e-6, mistake=other[1])

text_size = counts["ViT-B/32"][:2].sum()
print(f"text tower of ViT-B/32: {text_size:.1f} million parameters")
assert int(text_size) == 63

end = tokens.argmax(1)  # [n]
places = np.arange(16)[None, :]
changed = np.where(places > end[:, None], 1000, tokens)
earlier = np.where(places == end[:, None] - 1, 1000, tokens)
check(
    "what follows the end",
    *(model.encode_text(x) for x in (changed, tokens)),
    1e-5,
    mistake=model.encode_text(earlier),
)

# %% [markdown]
# **Read next in the source:** `jaxclip.models.text`, `jaxclip.models.resnet`, `jaxclip.models.clip`

# %% [markdown]
# ## 5. Figure 3, line by line
#
# > Given a batch of N (image, text) pairs, CLIP is trained to predict which of the N × N possible
# > (image, text) pairings across a batch actually occurred.
# >
# > Section 2.3
#
# Every picture is held against every text. Row $i$ of the matrix of logits is a question, "which
# text belongs to picture $i$?", and column $j$ another, "which picture belongs to text $j$?". Each
# is an ordinary classification into $n$ classes:
#
# $$L_{ij} = e^t \, \frac{I_i \cdot T_j}{|I_i| |T_j|}, \qquad
# \mathrm{loss} = -\frac{1}{2n} \sum_i \left( \log \frac{e^{L_{ii}}}{\sum_j e^{L_{ij}}} +
# \log \frac{e^{L_{ii}}}{\sum_j e^{L_{ji}}} \right)$$
#
# Below, the nine lines as the paper prints them, with the embedded model's towers and eight
# drawings. Two remarks. The released towers have their projections inside, so the features are
# taken before the last matrix. And the ResNet's projection has a bias, which the paper does not: a
# column of ones beside the features and the bias beneath $W_i$ bring it into the same product.

# %%
emoji, _ = jaxclip.load("emoji")
I = jnp.asarray(pixels)  # [n, h, w, c], minibatch of aligned images
T = jnp.asarray(tokenize(NAMES, context_length=32))  # [n, l], minibatch of aligned texts
n = len(NAMES)


def image_encoder(images):
    pooled = emoji.visual.stages(images)[1]["pooled"]
    return np.concatenate([np.float64(pooled), np.ones((len(images), 1))], axis=1)


def text_encoder(texts):
    return np.float64(emoji.text.stages(texts)[1]["pooled"])


last = emoji.visual.attnpool.c_proj
W_i = np.concatenate([np.float64(last.kernel[...]), np.float64(last.bias[...])[None]])  # [d_i, d_e]
W_t = np.float64(emoji.text.text_projection[...])  # [d_t, d_e]
t = np.float64(emoji.logit_scale[...])
l2_normalize, cross_entropy_loss = reference.l2_normalize, reference.cross_entropy_loss

# extract feature representations of each modality
I_f = image_encoder(I)  # [n, d_i]
T_f = text_encoder(T)  # [n, d_t]

# joint multimodal embedding [n, d_e]
I_e = l2_normalize(np.dot(I_f, W_i), axis=1)
T_e = l2_normalize(np.dot(T_f, W_t), axis=1)

# scaled pairwise cosine similarities [n, n]
logits = np.dot(I_e, T_e.T) * np.exp(t)

# symmetric loss function
labels = np.arange(n)
loss_i = cross_entropy_loss(logits, labels, axis=0)
loss_t = cross_entropy_loss(logits, labels, axis=1)
loss = (loss_i + loss_t) / 2
print(f"exp(t) = {np.exp(t):.1f}, loss_i {loss_i:.4f}, loss_t {loss_t:.4f}, loss {loss:.4f}")
print(f"a model that knows nothing: ln {n} = {np.log(n):.4f}")

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(10, 4), layout="constrained")
steps = {
    "cosines": I_e @ T_e.T,
    "softmax over axis 1: which text?": reference.softmax(logits, axis=1),
    "softmax over axis 0: which picture?": reference.softmax(logits, axis=0),
}
for number, (title, matrix) in enumerate(steps.items()):
    axes = figure.add_subplot(1, 3, number + 1)
    axes.imshow(matrix.T, cmap="viridis")  # transposed: pictures lie under the columns
    axes.set_yticks(range(n), NAMES if number == 0 else [""] * n, fontsize=8)
    axes.set_title(title, fontsize=10)
    draw_under(axes, seen)
    for i, j in np.ndindex(n, n):
        value, ink = matrix[i, j], "black" if matrix[i, j] > 0.5 else "white"
        shown = f"{value:.1f}" if abs(value) > 0.05 else ""
        axes.text(i, j, shown, ha="center", va="center", fontsize=7, color=ink)
show(figure, "05-figure-3", "Cosines of eight drawings with eight names, and the two softmaxes")

# %% [markdown]
# **The check.** The nine lines in NumPy against the same nine in JAX, `jaxclip.losses`, from the
# model's own embeddings. The mistake is one that training would survive: the same direction twice.

# %%
from jaxclip import losses

by_jax = losses.contrastive_loss(*emoji.embed(I, T), emoji.logit_scale[...])
check("Figure 3", by_jax, loss, 1e-5, mistake=loss_t)

# %% [markdown]
# **Read next in the source:** `jaxclip.losses`, `jaxclip.reference`

# %% [markdown]
# ## 6. The temperature, learned and logarithmic
#
# > Finally, the temperature parameter which controls the range of the logits in the softmax, τ, is
# > directly optimized during training as a log-parameterized multiplicative scalar ...
# >
# > Section 2.3
#
# > The learnable temperature parameter τ was initialized to the equivalent of 0.07 from (Wu et al.,
# > 2018) and clipped to prevent scaling the logits by more than 100 which we found necessary to
# > prevent training instability.
# >
# > Section 2.5
#
# Cosines lie between -1 and 1. Without a factor, the softmax of a row could never come near 0 and
# 1. With $L = e^t S$, where $S$ are the cosines and $G$ the gradient of the loss with respect to
# the logits (chapter 9 derives it),
#
# $$\frac{\partial\,\mathrm{loss}}{\partial t} = \sum_{ij} G_{ij} L_{ij}$$
#
# To look at it, we embed the 1,556 drawings of the unseen artist once, and keep 256 pairs.

# %%
from jaxclip.evaluation.named_pictures import Evaluation

evaluation = Evaluation(unseen, unseen.names)
all_images, by_class = evaluation.embeds(emoji)  # [1556, e], [classes, e]
all_texts = by_class[evaluation.answers]  # [1556, e], row i belongs to picture i
some = np.random.default_rng(0).permutation(len(all_images))[:256]
I_e, T_e = np.float64(all_images[some]), np.float64(all_texts[some])

scales = np.geomspace(1, 400, 60)
perfect = [reference.contrastive_loss(T_e, T_e, np.log(s)) for s in scales]
real = [reference.contrastive_loss(I_e, T_e, np.log(s)) for s in scales]
best = scales[np.argmin(real)]
print(f"least loss of these pairs at a factor of {best:.0f}; the model learned {np.exp(t):.0f}")

# %% [markdown]
# The model learned its factor on drawings that it saw many times. On an unseen artist its
# embeddings are worse, and it is too sure of itself: a smaller factor would have less loss here.
#
# **Why learned.** The best factor depends on how good the embeddings are. We make embeddings of any
# quality: texts, mixed with noise. Bad ones need a small factor, since confident errors are
# expensive; good ones need a large one. Training passes from one to the other, so no constant is
# right.
#
# **Why clipped.** If every right pair is closer than every wrong one, the loss falls for ever as
# $t$ grows, so $t$ would run away, and the gradient would come from a few pairs that are still
# confused. `hold_logit_scale` cuts $t$ at ln 100 after each update.
#
# **Why logarithmic.** Adam moves every number by about the learning rate a step. In $t$ that is a
# step of so many per cent, wherever the factor stands. In the factor itself it is next to nothing,
# in τ it is a larger share the smaller τ is. Below all three start at 1/0.07 with one learning
# rate: $t$ arrives without a detour, the factor hardly moves, and τ overshoots and swings.

# %%
import optax

from jaxclip.training.optimizer import MAX_LOGIT_SCALE, hold_logit_scale

noise = reference.l2_normalize(np.random.default_rng(1).normal(size=T_e.shape))
quality = np.linspace(0, 1, 30)
mixed = [reference.l2_normalize(a * T_e + (1 - a) * noise) for a in quality]
land = np.array(
    [[reference.contrastive_loss(x[:64], T_e[:64], np.log(s)) for x in mixed] for s in scales]
)  # [scales, qualities]


def descend(start, factor, steps=300):
    """The factor on the cosines after each step of Adam on `start`."""
    optimizer, pairs = optax.adam(5e-3), (jnp.float32(I_e), jnp.float32(T_e))

    def loss_of(value):
        return losses.contrastive_loss(*pairs, jnp.log(factor(value)))

    def step(carry, _):
        value, state = carry
        updates, state = optimizer.update(jax.grad(loss_of)(value), state)
        return (value + updates, state), factor(value)

    value = jnp.float32(start)
    return jax.lax.scan(step, (value, optimizer.init(value)), None, length=steps)[1]


paths = {
    "t": descend(np.log(1 / 0.07), jnp.exp),
    "the factor": descend(1 / 0.07, lambda s: s),
    "τ": descend(0.07, lambda tau: 1 / tau),
}
held = hold_logit_scale({"logit_scale": jnp.float32(7.0)})["logit_scale"]
print(f"t = 7 is held at {held:.4f} = ln {np.exp(held):.0f}")

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(11, 3.4), layout="constrained")
axes = figure.add_subplot(1, 3, 1)
axes.plot(scales, real, label="unseen drawings")
axes.plot(scales, perfect, label="perfect pairs")
axes.axvline(np.exp(t), color="tab:blue", linestyle=":", label="as learned")
axes.axvline(100, color="grey", linestyle="--", label="clipped here")
axes.axhline(np.log(256), color="grey", linewidth=0.5)
axes.set(xscale="log", xlabel="factor exp(t)", ylabel="loss", title="one set of embeddings")
axes.set_ylim(0, 10)
axes.legend(fontsize=8)
axes = figure.add_subplot(1, 3, 2)
drawn = axes.contourf(quality, scales, land, levels=np.linspace(0, 8, 25), extend="max")
axes.plot(quality, scales[land.argmin(0)], color="white", label="best factor")
axes.axhline(100, color="white", linestyle="--", label="clipped here")
axes.set(yscale="log", xlabel="quality of the embeddings", ylabel="factor", title="loss landscape")
axes.legend(fontsize=8, facecolor="grey", labelcolor="white", loc="upper left")
figure.colorbar(drawn, ticks=range(0, 9, 2))
axes = figure.add_subplot(1, 3, 3)
for name, path in paths.items():
    axes.plot(np.where(np.isfinite(path) & (path > 0), path, np.nan), label=f"learn {name}")
axes.axhline(best, color="grey", linestyle=":", label="best")
axes.set(xlabel="step of Adam", ylabel="factor", ylim=(10, 40))
axes.set_title("one learning rate")
axes.legend(fontsize=8)
show(figure, "06-temperature", "Loss over the factor, the loss landscape, three parametrisations")

# %% [markdown]
# **The check.** The derivative with respect to $t$ by the equation, against a difference quotient.
# The mistake is to differentiate with respect to the factor and forget that it is $e^t$. Last, the
# three paths did what the text says.

# %%
by_hand = reference.contrastive_loss_gradient(I_e, T_e, t)[2]
h = 1e-4
two = [reference.contrastive_loss(I_e, T_e, t + side) for side in (h, -h)]
check("dloss / dt", by_hand, (two[0] - two[1]) / (2 * h), 1e-5, mistake=by_hand / np.exp(t))
assert abs(np.log(paths["t"][-1] / best)) < 0.2 < np.log(best / paths["the factor"][-1])
assert max(paths["τ"]) > 1.1 * best > max(paths["t"])
assert np.isclose(held, MAX_LOGIT_SCALE) and np.all(np.diff(perfect) < 0)

# %% [markdown]
# **Read next in the source:** `jaxclip.training.optimizer`

# %% [markdown]
# ## 7. Why the loss is symmetric
#
# > We optimize a symmetric cross entropy loss over these similarity scores.
# >
# > Section 2.3
#
# One direction alone leaves something free. A softmax over a row does not change when a number is
# added to the whole row, so `loss_t` cannot see a picture that is too close to every text, and
# `loss_i`, in the same way, cannot see a text that is too close to every picture:
#
# $$\mathrm{loss}_t(L + u \mathbf{1}^T) = \mathrm{loss}_t(L), \qquad
# \mathrm{loss}_i(L + \mathbf{1} v^T) = \mathrm{loss}_i(L)$$
#
# How much does it matter? We learn two small projections on the embeddings of 256 pairs, with each
# half of the loss and with both, and count how often the right partner is nearest, each way.


# %%
def half(axis):
    """One of the two halves, as a function of the same arguments as the loss."""

    def loss_of(I_e, T_e, t):
        logits = I_e @ T_e.T * jnp.exp(t)
        return losses.cross_entropy_loss(logits, jnp.arange(len(I_e)), axis)

    return loss_of


def learn(loss_of, steps=200, width=8):
    """Embeddings of the pairs by projections [e, 8] that were learned with this loss."""
    pairs, optimizer = (jnp.float32(I_e), jnp.float32(T_e)), optax.adam(3e-3)
    both = jax.random.normal(jax.random.key(0), (2, I_e.shape[1], width)) / np.sqrt(I_e.shape[1])

    def project(W):
        return [losses.l2_normalize(x @ w) for x, w in zip(pairs, W, strict=True)]

    def step(carry, _):
        W, state = carry
        gradient = jax.grad(lambda W: loss_of(*project(W), jnp.log(20.0)))(W)
        updates, state = optimizer.update(gradient, state)
        return (W + updates, state), None

    (W, _), _ = jax.jit(lambda W: jax.lax.scan(step, (W, optimizer.init(W)), None, length=steps))(
        both
    )
    return [np.float64(x) for x in project(W)]


def recalls(I_e, T_e):
    """How often the nearest text, and the nearest picture, is the right one."""
    cosines = I_e @ T_e.T
    return [(cosines.argmax(axis) == np.arange(len(cosines))).mean() for axis in (1, 0)]


learned = {"loss_t alone": learn(half(1)), "loss_i alone": learn(half(0))}
learned["both"] = learn(losses.contrastive_loss)
for name, pairs in learned.items():
    sides = [float(half(axis)(*map(jnp.asarray, pairs), jnp.log(20.0))) for axis in (1, 0)]
    print(f"{name:13} loss_t {sides[0]:.3f}, loss_i {sides[1]:.3f}", end="; ")
    print("nearest text {:.0%}, nearest picture {:.0%} right".format(*recalls(*pairs)))

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(6, 3), layout="constrained")
axes = figure.add_subplot()
at = np.arange(len(learned))
for side, label in enumerate(("which text belongs to the picture?", "which picture to the text?")):
    heights = [100 * recalls(*pairs)[side] for pairs in learned.values()]
    bars = axes.bar(at + 0.4 * side - 0.2, heights, 0.38, label=label)
    axes.bar_label(bars, fmt="%.0f")
axes.set_xticks(at, [f"trained with {name}" for name in learned], fontsize=8)
axes.set(ylabel="right, %", ylim=(0, 110))
axes.legend(fontsize=8, loc="upper center", ncols=2)
show(figure, "07-symmetric", "Right answers each way after training with one half or both halves")

# %% [markdown]
# Each half learns its own direction better than the other one; the mean learns both.
#
# **The check.** Add a different number to each row: `loss_t` stays. The mistake would be to think
# so of `loss_i`. And the whole loss does not care which of the two is called the picture.

# %%
logits = I_e @ T_e.T * np.exp(t)
labels = np.arange(len(I_e))
shifted = logits + np.random.default_rng(0).normal(size=(len(I_e), 1))
kept, moved = (cross_entropy_loss(shifted, labels, axis) for axis in (1, 0))
before = [cross_entropy_loss(logits, labels, axis) for axis in (1, 0)]
check("loss_t of shifted rows", kept, before[0], 1e-12, mistake=before[0] + moved - before[1])
there, back = (reference.contrastive_loss(*pair, t) for pair in ((I_e, T_e), (T_e, I_e)))
check("pictures and texts swapped", back, there, 1e-12, mistake=before[0])
by_t, by_i = (recalls(*learned[f"loss_{side} alone"]) for side in "ti")
assert by_t[0] > by_i[0] and by_i[1] > by_t[1]

# %% [markdown]
# **Read next in the source:** `jaxclip.training.sigmoid` (a loss without directions, which came
# later and is not in the paper)

# %% [markdown]
# ## 8. Why batches are large
#
# > We use a very large minibatch size of 32,768.
# >
# > Section 2.5
#
# The other pairs of the batch are the wrong answers, so a larger batch is a harder classification.
# A model that knows nothing has a loss of ln n. What a model knows about the pairs, their mutual
# information, is at least the distance from there (van den Oord et al. 2018, whom section 2.3 cites
# for this loss):
#
# $$\mathcal{I}(\mathrm{image};\, \mathrm{text}) \;\ge\; \ln n - \mathrm{loss}_n$$
#
# The right side can never exceed ln n: the loss of a batch of 16 can show 2.8 nats at most. We
# measure the loss of the embedded model at many batch sizes, and how far the gradient of small
# batches points away from that of a large one.

# %%
rng = np.random.default_rng(0)
sizes = 2 ** np.arange(1, 11)


def mean_loss(size):
    draws = max(4, 2048 // size)
    chosen = [rng.permutation(len(all_images))[:size] for _ in range(draws)]
    return np.mean([reference.contrastive_loss(all_images[c], all_texts[c], t) for c in chosen])


at_size = np.array([mean_loss(size) for size in sizes])


@jax.jit
def gradient(images, texts):
    """Of the loss with respect to one matrix [e, e] that all pictures pass, at the identity."""

    def loss_of(W):
        return losses.contrastive_loss(losses.l2_normalize(images @ W), texts, jnp.float32(t))

    return jax.grad(loss_of)(jnp.eye(images.shape[1]))


order = rng.permutation(len(all_images))[:1024]
whole = np.asarray(gradient(all_images[order], all_texts[order]))
angles = []
for size in sizes:
    parts = order.reshape(-1, size)  # the same pairs, in microbatches
    mean = np.mean([gradient(all_images[p], all_texts[p]) for p in parts], axis=0)
    angles.append((mean * whole).sum() / np.linalg.norm(mean) / np.linalg.norm(whole))

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(9, 3.2), layout="constrained")
axes = figure.add_subplot(1, 2, 1)
axes.plot(sizes, np.log(sizes), "--", color="grey", label="ln n: knows nothing")
axes.plot(sizes, at_size, "o-", label="loss")
axes.plot(sizes, np.log(sizes) - at_size, "o-", label="ln n - loss: shown to know")
axes.set(xscale="log", xlabel="batch n", ylabel="nats", title="the same model, other batches")
axes.legend(fontsize=8)
axes = figure.add_subplot(1, 2, 2)
axes.plot(sizes, angles, "o-", color="tab:green")
axes.set(xscale="log", xlabel="pairs a microbatch", ylabel="cosine with the batch's gradient")
axes.set_title("mean of the gradients of microbatches")
show(figure, "08-batches", "Loss and information over batch size; gradients of microbatches")

# %%
for size, value, angle in zip(sizes, at_size, angles, strict=True):
    print(
        f"n {size:5}  loss {value:.3f}  ln n - loss {np.log(size) - value:.3f}  cosine {angle:.3f}"
    )

# %% [markdown]
# The right picture is why many small batches are not a large one: the mean over microbatches uses
# every pair, but with fewer wrong answers for each, and so gives another gradient. (Not every run
# gains by larger batches. On the 5,881 drawings here a batch of 128 learned as much a picture as
# one of 256: docs/emoji.md.) A batch must not hold one name twice, either, since each would be a
# wrong answer for the other.
#
# **The check.** Embeddings without information give exactly ln n. The mistake is to average over
# microbatches of half the size, which gives ln (n / 2), and looks like progress.

# %%
same = np.ones((64, 4)) / 2  # all of length one, all equal
halves = np.mean([reference.contrastive_loss(x, x, t) for x in (same[:32], same[32:])])
check("nothing known", reference.contrastive_loss(same, same, t), np.log(64), 1e-12, mistake=halves)
check("whole batch, as one microbatch", angles[-1], 1.0, 1e-4, mistake=angles[0])
assert np.all(np.diff(at_size) > 0) and np.all(at_size < np.log(sizes))

# %% [markdown]
# **Read next in the source:** `jaxclip.data.emoji.batches`

# %% [markdown]
# ## 9. The gradient by hand
#
# > ... maximize the cosine similarity of the image and text embeddings of the N real pairs in the
# > batch while minimizing the cosine similarity of the embeddings of the N² − N incorrect pairings.
# >
# > Section 2.3
#
# The gradient is that sentence, with weights. Let $P$ be the softmax of the logits over axis 0, $Q$
# over axis 1, $S$ the cosines. Cross-entropy has the derivative "softmax minus the right answer",
# so
#
# $$G = \frac{\partial\,\mathrm{loss}}{\partial L} = \frac{P + Q - 2 \cdot \mathbf{1}}{2n},
# \qquad \frac{\partial\,\mathrm{loss}}{\partial I_e} = e^t G\, T_e,
# \qquad \frac{\partial\,\mathrm{loss}}{\partial T_e} = e^t G^T I_e$$
#
# On the diagonal $G$ is negative: a right pair is pulled together, the less the surer the model is.
# Off it $G$ is positive: a wrong pair is pushed apart, the harder the more it is mistaken for a
# right one. Pairs that the model does not confuse add nothing.

# %%
places = [unseen.names.index(name) for name in NAMES]
I_8, T_8 = np.float64(all_images[places]), np.float64(all_texts[places])
start_t = np.log(1 / 0.07)  # the factor that training begins with
L = I_8 @ T_8.T * np.exp(start_t)
P, Q = reference.softmax(L, axis=0), reference.softmax(L, axis=1)
G = (P + Q - 2 * np.eye(8)) / 16

by_hand = reference.contrastive_loss_gradient(I_8, T_8, start_t)  # dloss / dI_e, dT_e, dt
with jax.enable_x64(True):
    arguments = [jnp.asarray(x) for x in (I_8, T_8, start_t)]  # 64 bits
    by_jax = jax.grad(losses.contrastive_loss, argnums=(0, 1, 2))(*arguments)

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(9, 3.4), layout="constrained")
for number, (title, matrix, colours, least) in enumerate(
    [
        ("P: which picture?", P, "viridis", 0),
        ("Q: which text?", Q, "viridis", 0),
        ("n G: red apart, blue together", 8 * G, "coolwarm", -1),
    ]
):
    axes = figure.add_subplot(1, 3, number + 1)
    drawn = axes.imshow(matrix.T, cmap=colours, vmin=least, vmax=1)
    axes.set_yticks(range(8), NAMES if number == 0 else [""] * 8)
    axes.tick_params(labelsize=7)
    axes.set_title(title, fontsize=10)
    draw_under(axes, seen)
    figure.colorbar(drawn, shrink=0.7)
show(figure, "09-gradient", "Both softmaxes of eight pairs and the gradient of the logits")

# %% [markdown]
# **The check.** Three ways, all with 64 bits: the equations above, the derivation in the reference,
# and automatic differentiation of the JAX loss. The mistakes: to forget one of the two directions,
# and to forget the factor.

# %%
forgot = (Q - np.eye(8)) / 8 @ T_8 * np.exp(start_t)
check("dloss / dI_e, in three lines", np.exp(start_t) * G @ T_8, by_hand[0], 1e-12, mistake=forgot)
for name, hand, auto in zip(("dI_e", "dT_e", "dt"), by_hand, by_jax, strict=True):
    check(f"dloss / {name}, by JAX", auto, hand, 1e-11, mistake=hand / np.exp(start_t))

# %% [markdown]
# **Read next in the source:** `jaxclip.reference` (`contrastive_loss_gradient`)

# %% [markdown]
# ## 10. Training, and the similarity matrix
#
# > We train CLIP from scratch without initializing the image encoder with ImageNet weights or the
# > text encoder with pre-trained weights.
# >
# > Section 2.3
#
# The optimiser of section 2.5 is Adam with decoupled weight decay on everything that is no gain or
# bias, and a cosine for the learning rate $\eta$:
#
# $$\theta \leftarrow \theta - \eta \left( \frac{\hat m}{\sqrt{\hat v} + \epsilon} +
# \lambda \theta \right)$$
#
# Here is a whole training of a small CLIP: 5,881 drawings by three artists, a ResNet of 64 pixels,
# a bag of words (Figure 3 names it: "CBOW or Text Transformer"), batches of 128. Twelve drawings
# that it is not trained on show what it has learned.

# %%
import dataclasses
import time

from jaxclip.evaluation.named_pictures import pixels as pixels_of
from jaxclip.models.parameters import count_parameters
from jaxclip.training.from_recipe import abstract_state, compiled_step, first_state
from jaxclip.training.input_pipeline import DrawingStream
from jaxclip.training.recipe import Execution, presets
from jaxclip.training.sharding import data_mesh

BATCH, STEPS = 128, max(20, round(MINUTES * 100))  # about 100 steps a minute on two cores
recipe = dataclasses.replace(presets["quick"], steps=STEPS, batch_size=BATCH, warmup=STEPS // 10)
mesh = data_mesh(jax.devices()[:1])
stream = DrawingStream(
    load_emoji("train"), size=64, batch_size=BATCH, seed=0, text_length=recipe.text_length
)
graphdef, _ = abstract_state(recipe, mesh)
state = first_state(recipe, mesh)
train_step = compiled_step(recipe, Execution(), mesh, stream.batch_to_pixels)

WATCHED = [*NAMES, "snowman", "bicycle", "key", "rainbow"]
held_out = unseen.select(np.array([unseen.names.index(name) for name in WATCHED]))
watched = pixels_of(held_out, 64), tokenize(WATCHED, context_length=32)
embed = jax.jit(lambda model, images, texts: model.embed(images, texts))


def cosines_of(state):
    I_e, T_e = embed(state.model(graphdef), *watched)
    return np.asarray(I_e @ T_e.T)


first_batch, first_model = next(stream), state.model(graphdef)
key = jax.random.fold_in(state.key, 0)
first_pixels = stream.batch_to_pixels(first_batch, key)  # augmented, on the device
embed_training = jax.jit(lambda model, *batch: model.embed(*batch, train=True))
first_embeds = embed_training(first_model, first_pixels, first_batch["tokens"])[:2]

# %% [markdown]
# The loop. `train_step` returns the next state and the metrics; the state holds parameters,
# BatchNorm's statistics and the optimiser's moments.

# %%
log, matrices, began = [], {0: cosines_of(state)}, time.perf_counter()
batch = first_batch
for number in range(STEPS):
    state, metrics = train_step(state, batch, jax.random.fold_in(state.key, number))
    log.append((float(metrics["loss"]), float(metrics["logit_scale"])))
    batch = next(stream)
    if number + 1 in {STEPS // 8, STEPS // 3, STEPS}:
        matrices[number + 1] = cosines_of(state)
        print(f"step {number + 1:4}: loss {log[-1][0]:.3f}, exp(t) {log[-1][1]:.1f}")
minutes = (time.perf_counter() - began) / 60
trained = state.model(graphdef)
print(f"{count_parameters(trained):,} parameters, {STEPS} steps in {minutes:.1f} minutes")

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(11, 6), layout="constrained")
upper, lower = figure.subfigures(2, 1, height_ratios=[1.15, 1])
for column, (number, matrix) in enumerate(matrices.items()):
    axes = upper.add_subplot(1, 4, column + 1)
    axes.imshow(matrix.T, cmap="viridis", vmin=-0.4, vmax=0.8)
    axes.set_yticks(range(len(WATCHED)), WATCHED if column == 0 else [""] * len(WATCHED))
    axes.tick_params(labelsize=7)
    axes.set_title(f"after {number} steps", fontsize=10)
    draw_under(axes, [preprocess.denormalise(x) for x in watched[0]])
axes = lower.add_subplot(1, 2, 1)
axes.plot([loss for loss, _ in log], label="loss")
axes.axhline(np.log(BATCH), color="grey", linestyle=":", label=f"ln {BATCH}: knows nothing")
axes.set(xlabel="step", ylabel="loss")
axes.legend(fontsize=8)
axes = lower.add_subplot(1, 2, 2)
axes.plot([scale for _, scale in log], color="tab:orange")
axes.set(xlabel="step", ylabel="exp(t), from 1 / 0.07")
show(figure, "10-training", "The similarity matrix of twelve unseen drawings as training goes on")

# %% [markdown]
# In a run of five minutes the loss falls to about 1.2, the diagonal appears after a third of the
# steps, and the factor does what chapter 6 says: it falls while the embeddings are poor, and rises
# as they get better. (At first all pictures are alike, so the columns of the matrix are equal.)
#
# **The check.** The first loss that the compiled step reports, against Figure 3 in NumPy with 64
# bits, on the embeddings of that batch. The mistake is to give every picture its neighbour's text.
# And the loss went down.

# %%
judged = [np.float64(x) for x in first_embeds]
shuffled = (judged[0], np.roll(judged[1], 1, axis=0))
first_t = np.log(1 / 0.07)
expected, wrong = (reference.contrastive_loss(*pair, first_t) for pair in (judged, shuffled))
check("loss of the first step", log[0][0], expected, 1e-5, mistake=wrong)
last = np.mean([loss for loss, _ in log[-5:]])
print(f"loss of the last five steps: {last:.3f}")
assert last < log[0][0] - 0.1

# %% [markdown]
# The real run is `jaxclip train emoji` (8 minutes); what was tried to find its recipe stands in
# docs/emoji.md.
#
# **Read next in the source:** `jaxclip.training.step`, `jaxclip.training.state`,
# `jaxclip.training.from_recipe`, `jaxclip.data.emoji.augment`

# %% [markdown]
# ## 11. Zero-shot and prompts
#
# > ... we use the names of all the classes in the dataset as the set of potential text pairings and
# > predict the most probable (image, text) pair according to CLIP.
# >
# > Section 3.1.2
#
# > We construct the ensemble over the embedding space instead of probability space.
# >
# > Section 3.1.4
#
# A class is a text, so a classifier is a matrix of text embeddings. With several prompts a class is
# the normalised mean of theirs, computed once; a picture then costs one product:
#
# $$w_c = \frac{\sum_p \hat T_{c,p}}{\left|\sum_p \hat T_{c,p}\right|}, \qquad
# \hat y = \operatorname{argmax}_c \; I_e \cdot w_c$$

# %%
from jaxclip.evaluation.zero_shot import build_classifier


def encode_texts(texts):
    """texts -> text_features [n, e], not normalised."""
    return np.asarray(emoji.encode_text(tokenize(texts, context_length=32, truncate=True)))


PROMPTS = {
    "name alone": ["{}"],
    "a photo of a {}.": ["a photo of a {}."],
    "five prompts": ["{}", "a {}.", "the {}.", "a drawing of a {}.", "an emoji of a {}."],
}
classes = evaluation.classes  # the 1,556 names, in order
classifiers = {how: build_classifier(encode_texts, classes, p) for how, p in PROMPTS.items()}
accuracy = {}
for how, classifier in classifiers.items():
    answers = (all_images @ classifier.T).argmax(axis=1)  # [n]
    accuracy[how] = 100 * (answers == evaluation.answers).mean()
    print(f"{how:18} {accuracy[how]:5.1f} % of {len(answers)} drawings right")
ours = 100 * evaluation(trained)["top1"]
print(f"{'trained above':18} {ours:5.1f} %, chance {100 / len(classes):.2f} %")

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(10, 5.2), layout="constrained")
grid = figure.add_gridspec(3, 4, height_ratios=[1.3, 1, 1])
axes = figure.add_subplot(grid[0, :])
bars = axes.barh([*accuracy, "trained above"], [*accuracy.values(), ours])
axes.bar_label(bars, fmt="%.1f")
axes.invert_yaxis()
axes.set_xlabel(f"top-1 of {len(classes)} names, %, by an unseen artist")
probabilities = reference.softmax(np.exp(t) * all_images @ classifiers["name alone"].T)
for column, name in enumerate(NAMES[:4]):
    row = probabilities[unseen.names.index(name)]
    likely = row.argsort()[::-1][:5]
    axes = figure.add_subplot(grid[1, column])
    axes.imshow(seen[column])
    axes.axis("off")
    axes = figure.add_subplot(grid[2, column])
    axes.barh([classes[c][:22] for c in likely], row[likely], color="tab:green")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.tick_params(labelsize=7)
show(figure, "11-zero-shot", "Accuracy by prompt, and the five likeliest names of four drawings")

# %% [markdown]
# The paper's prompt gains 1.3 % on ImageNet, and all 80 together 3.5 % more (section 3.1.4). Here
# prompts lose. The reason is in the same section: a prompt helps because the training captions were
# sentences. This model was trained on bare names, and its text encoder is the mean of the words, of
# which "a photo of a" is then the larger part. A prompt is a guess about the training data.
#
# **The check.** The classifier by the equation. The mistake is to average features before they are
# normalised, so that long ones count more.

# %%
prompts = PROMPTS["five prompts"]
features = np.float64(encode_texts([p.format(c) for c in classes for p in prompts]))
features = features.reshape(len(classes), len(prompts), -1)  # [c, p, e]
mean = reference.l2_normalize(reference.l2_normalize(features).sum(axis=1))
unequal = reference.l2_normalize(features.sum(axis=1))
check("ensemble of prompts", classifiers["five prompts"], mean, 1e-5, mistake=unequal)

# %% [markdown]
# **Read next in the source:** `jaxclip.evaluation.zero_shot`, `jaxclip.evaluation.prompts`,
# `jaxclip.evaluation.named_pictures`

# %% [markdown]
# ## 12. The loss on many devices
#
# > The calculation of embedding similarities was also sharded with individual GPUs computing only
# > the subset of the pairwise similarities necessary for their local batch of embeddings.
# >
# > Section 2.5
#
# At 32,768 pairs the logits are 4 GiB in 32 bits, and the gradient holds them more than once. Four
# ways to the same number, each with one idea more:
#
# - **dense**: Figure 3. It holds all logits, [n, n].
# - **chunked**: the loss of a row needs its log-sum-exp, not the row, and that can be updated with
#   one chunk of logits after the other. It holds [n, chunk].
# - **ring**: the same over devices. The texts travel around the ring; each device sees all of them,
#   and holds [n / devices, chunk].
# - **caching**: the logits are small now, but the activations of the towers are not. So the batch
#   passes the towers in microbatches, once for the embeddings and once more for the gradient.
#
# The idea of the second, for a maximum $m$ and a sum $z$ so far and new logits $x$:
#
# $$m' = \max(m, \max_j x_j), \qquad z' = z\, e^{m - m'} + \sum_j e^{x_j - m'}, \qquad
# \log\sum e^x = m + \log z$$
#
# And of the last: the chain rule goes through the embeddings, so $\partial\,\mathrm{loss} /
# \partial\theta = \sum_i (\partial\,\mathrm{loss} / \partial I_i) (\partial I_i / \partial\theta)$,
# and the sum may be taken in microbatches once the first factor, which needs all pairs, is known.

# %%
import functools

from jaxclip.training.global_losses import chunked_contrastive_loss, ring_contrastive_loss
from jaxclip.training.step import clip_loss_fn, loss_over_mesh


def own_pairs_only(I_e, T_e, t, *, axis):
    """The mistake: each device compares its own pairs alone."""
    return jax.lax.pmean(losses.contrastive_loss(I_e, T_e, t), axis)


four = data_mesh(jax.devices()[:DEVICES])
WAYS = {
    "dense": losses.contrastive_loss,
    "chunked": functools.partial(chunked_contrastive_loss, chunk=64),
    "ring": loss_over_mesh(four, functools.partial(ring_contrastive_loss, chunk=64)),
}
wrong_way = loss_over_mesh(four, own_pairs_only)
arguments = (jnp.float32(I_e), jnp.float32(T_e), jnp.float32(t))  # 256 pairs


def gradients(loss_of):
    """dloss / dI_e, dT_e and dt, in one row."""
    return np.concatenate([np.ravel(g) for g in jax.grad(loss_of, (0, 1, 2))(*arguments)])


judge = np.concatenate([np.ravel(g) for g in reference.contrastive_loss_gradient(I_e, T_e, t)])

# %% [markdown]
# **The check.** Gradients, not losses: a loss that is right may have a gradient that is wrong by
# the number of devices. The judge is the derivation of chapter 9 with 64 bits. The mistake is the
# usual one, that every device compares its own pairs only.

# %%
mistake = gradients(jax.jit(wrong_way))
for way, loss_of in WAYS.items():
    check(f"gradient, {way}", gradients(jax.jit(loss_of)), judge, 1e-5, mistake)

# %% [markdown]
# Now the fourth, with the two small towers of chapter 4 in training. The mistake is what is
# commonly called gradient accumulation: the mean of the gradients of the microbatches' own losses.
# Chapter 8 showed that it is another gradient.

# %%
from jaxclip.models.parameters import split_statistics

towers, tower_params, stats = split_statistics(Clip.from_config(small, key=1, remat="none"))
pairs_256 = unseen.select(some)
towers_batch = {
    "image": jnp.asarray(pixels_of(pairs_256, 64)),
    "tokens": jnp.asarray(tokenize(pairs_256.names, context_length=16, truncate=True)),
}


def compile_gradient(batch, microbatches=1):
    """The compiled gradient of a batch's loss with respect to all parameters of both towers."""
    loss_fn = clip_loss_fn(towers, microbatches=microbatches)

    def loss_of(parameters, batch):
        return loss_fn(parameters, stats, batch, key)[0]

    return jax.jit(jax.grad(loss_of)).lower(tower_params, batch).compile()


def in_a_row(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


programs = {m: compile_gradient(towers_batch, m) for m in (1, 4, 16)}
whole, *cached = (in_a_row(program(tower_params, towers_batch)) for program in programs.values())
sixteenths = [jax.tree.map(lambda x: x[i::16], towers_batch) for i in range(16)]  # noqa: B023
on_its_own = compile_gradient(sixteenths[0])
accumulated = np.mean([in_a_row(on_its_own(tower_params, part)) for part in sixteenths], axis=0)
for m, row in zip((4, 16), cached, strict=True):
    check(f"gradient in {m} microbatches", row, whole, 1e-5, mistake=accumulated)

# %% [markdown]
# The memory, as the compiler plans it for one device (nothing is run for these numbers). Dense
# grows with the square of the batch, the others in proportion to it.


# %%
def bytes_held(program):
    """Bytes of intermediates of a compiled program, on each device."""
    return program.memory_analysis().temp_size_in_bytes


def loss_memory(loss_of, n):
    like = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, 64), (n, 64), ())]
    return bytes_held(jax.jit(jax.grad(loss_of, (0, 1, 2))).lower(*like).compile())


NUMBERS = (512, 2048, 8192)
in_loss = {way: [loss_memory(loss_of, n) / 2**20 for n in NUMBERS] for way, loss_of in WAYS.items()}
in_towers = {str(m): bytes_held(program) / 2**20 for m, program in programs.items()}

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(9, 3.4), layout="constrained")
axes = figure.add_subplot(1, 2, 1)
for way, values in in_loss.items():
    axes.plot(NUMBERS, values, "o-", label=way + (f", {DEVICES} devices" if way == "ring" else ""))
axes.set_xscale("log", base=2)
axes.set(yscale="log", xlabel="pairs", ylabel="MiB a device", title="loss and its gradient")
axes.legend(fontsize=8)
axes = figure.add_subplot(1, 2, 2)
bars = axes.bar([*in_towers], [*in_towers.values()], color="tab:green")
axes.bar_label(bars, fmt="%.0f")
axes.margins(y=0.15)
axes.set(xlabel="microbatches of a batch of 256", ylabel="MiB", title="two small towers, training")
show(figure, "12-memory", "Memory of the loss over pairs by way, and of towers over microbatches")

# %%
for way, values in in_loss.items():
    print(f"{way:8}", "  ".join(f"{n}: {v:8.2f} MiB" for n, v in zip(NUMBERS, values, strict=True)))
assert in_loss["dense"][-1] > 50 * in_loss["chunked"][-1] > 50 * in_loss["ring"][-1]
assert in_towers["16"] < in_towers["1"] / 3

# %% [markdown]
# What a process really holds, up to 65,536 pairs, is measured in docs/scaling.md.
#
# **Read next in the source:** `jaxclip.training.global_losses`, `jaxclip.training.cached`,
# `jaxclip.training.sharding`

# %% [markdown]
# ## 13. Where the released code differs from the paper
#
# > For computational efficiency, the max sequence length was capped at 76.
# >
# > Section 2.4
#
# | | the paper | the released code |
# |---|---|---|
# | longest text | 76 tokens (2.4) | 77, both marks included |
# | vocabulary | 49,152 (2.4) | 49,408, with 256 bytes at the end of a word |
# | activation | that of GPT-2 in the text tower (2.4) | QuickGELU in both towers |
# | projections | beside the encoders (Figure 3) | inside: `visual.proj`, `text_projection` |
# | bias of the projection | none (Figure 3) | the ResNet's attention pool has one |
# | loss and training | Figure 3 and section 2.5 | none is released |
# | bag of words | named (Figure 3) | none |
# | numbers | mixed precision (2.5) | float16 on a GPU, float32 on a CPU |
# | temperature | clipped at 100 (2.5) | a parameter, near 100 in the files; no clip |
# | `loss_i`, `loss_t` | softmax over axis 0, over axis 1 | none; some others swap the names |
#
# Where they differ, this repository follows the released code, because its files exist, and the
# paper where nothing was released. The difference that costs most when it is missed is the
# activation:
#
# $$\mathrm{QuickGELU}(x) = x \, \sigma(1.702\, x), \qquad \mathrm{GELU}(x) = x \, \Phi(x)$$

# %%
x = np.linspace(-6, 6, 601)
quick, exact, tanh = (f(x) for f in reference.ACTIVATIONS.values())

# %% jupyter={"source_hidden": true}
figure = Figure(figsize=(9, 3), layout="constrained")
axes = figure.add_subplot(1, 2, 1)
axes.plot(x, quick, label="QuickGELU")
axes.plot(x, exact, "--", label="GELU")
axes.set(xlabel="x", title="they look the same")
axes.legend(fontsize=8)
axes = figure.add_subplot(1, 2, 2)
axes.plot(x, quick - exact, label="QuickGELU - GELU")
axes.plot(x, tanh - exact, label="tanh approximation - GELU")
axes.set(xlabel="x", title="and are not")
axes.legend(fontsize=8)
show(figure, "13-activation", "QuickGELU and GELU, and their difference of up to 0.02")

# %% [markdown]
# **The check.** The vocabulary: the paper's number, 256 bytes more. And the activation of the model
# in Flax against the equation, with the other one for a mistake; the difference grows from block to
# block (chapter 4 measured it after three).

# %%
from jaxclip.models import layers
from jaxclip.tokenizer import CONTEXT_LENGTH

assert (VOCAB_SIZE, CONTEXT_LENGTH) == (49152 + 256, 76 + 1)
assert len(merges) == 49152 - 256 - 2
by_flax = layers.quick_gelu(jnp.float32(x))
check("QuickGELU", by_flax, x / (1 + np.exp(-1.702 * x)), 1e-6, mistake=exact)
print(f"largest difference to GELU: {np.abs(quick - exact).max():.4f}")
print(f"released models use: {sorted({config.activation for config in RELEASED.values()})}")

# %% [markdown]
# **Read next in the source:** `jaxclip.convert.layouts.openai`, `jaxclip.config`

# %% [markdown]
# ## 14. Exercises
#
# Try before you open an answer; the last cell checks those that are numbers. Each can be done in
# this page's notebook, with the names defined above.
#
# **1.** Without running anything: how many rows has `tokenize(["", "!", "a " * 300],
# truncate=True)`, and what stands in the last column of each?
#
# <details><summary>Answer</summary>
#
# Three rows of 77. The empty text is the two marks and zeros, so its last column is 0; so is that
# of "!". The third is cut, and the last id of a text that is cut is the end mark, 49,407.
#
# </details>
#
# **2.** How many tokens does the image tower of ViT-L/14 read at 224 pixels, and how many at 336?
# How much more work is its attention then?
#
# <details><summary>Answer</summary>
#
# A row has 224 / 14 = 16 patches, so 16² + 1 = 257 tokens, and 24² + 1 = 577 at 336 pixels. Scores
# are a matrix of tokens by tokens: (577 / 257)² = 5.04 times the work. The products with a kernel
# grow by 2.25 only.
#
# </details>
#
# **3.** The text tower has no mask for padding. Why is that right, and would it be right in a tower
# without the causal mask?
#
# <details><summary>Answer</summary>
#
# Only the row at the end mark is read. With the causal mask it sees nothing behind it, and padding
# stands behind it. Without the mask it would see the padding, and the features of a text would
# depend on how many zeros follow.
#
# </details>
#
# **4.** What is the loss of a model whose embeddings are perfect (the right cosine 1, all others
# 0), for n = 4 and t = 0? What does that say about fixing the factor at 1?
#
# <details><summary>Answer</summary>
#
# Each softmax gives the right answer e / (e + 3), so the loss is ln(1 + 3 / e) = 0.7437, although
# nothing is left to learn (ln 4 is 1.386). For n = 32,768 it would be 9.4 of 10.4. With a factor of
# 1 the loss could hardly tell a perfect model from one that knows nothing.
#
# </details>
#
# **5.** Two pairs of the batch are the same picture with the same text. What is the least loss that
# a model can reach on this batch of n?
#
# <details><summary>Answer</summary>
#
# The two cannot be told apart, so each gets at best one half: ln 2 for two of n questions, each
# way. The mean is (2 / n) ln 2, whatever the model does. That is why a batch here never holds a
# name twice.
#
# </details>
#
# **6.** The derivation of chapter 9 treats the embeddings as free. Continue it through
# `l2_normalize`: what is the gradient with respect to the features f, where I = f / |f|?
#
# <details><summary>Answer</summary>
#
# The derivative of f / |f| is (1 - I Iᵀ) / |f|. So the gradient loses its part along I (the length
# of f changes nothing) and is divided by |f|: `g = (d - I * (d * I).sum(-1, keepdims=True)) / |f|`,
# where d is dloss / dI. Long features learn more slowly.
#
# </details>
#
# **7.** Someone trains on 8 devices with the mean of the devices' own losses, n = 256 on each.
# Which loss does a model that knows nothing have, and which ought it to have? Why is that mistake
# hard to see?
#
# <details><summary>Answer</summary>
#
# ln 256 = 5.545, and it ought to be ln 2048 = 7.625. It is hard to see because the loss is lower,
# falls well, and every device agrees: it is a right loss, of a smaller batch.
#
# </details>
#
# **8.** What is the memory of the logits at 32,768 pairs in 32 bits, dense, and in a ring of 256
# devices with whole blocks (chunk = pairs of a device)?
#
# <details><summary>Answer</summary>
#
# Dense: 32,768² · 4 bytes = 4 GiB. In the ring: a device has 128 pairs, and a block is 128 · 128 ·
# 4 bytes = 64 KiB.
#
# </details>
#
# **9.** Swap the axes of `loss_i` and `loss_t`, as some code does. Which of these change: the loss,
# its gradient, the two curves in the log?
#
# <details><summary>Answer</summary>
#
# The curves change their names. The loss is the mean of the two, and it and its gradient stay.
#
# </details>
#
# **10.** Program it: one step of gradient descent on `I_e` and `T_e` as free vectors (rate 1, then
# normalised again). By how much does the loss of these 256 pairs fall? What happens to it with the
# factor at 100?
#
# <details><summary>Answer</summary>
#
# ```
# def after_a_step(t):
#     d_I, d_T, _ = reference.contrastive_loss_gradient(I_e, T_e, t)
#     pair = [reference.l2_normalize(x - d) for x, d in ((I_e, d_I), (T_e, d_T))]
#     return reference.contrastive_loss(*pair, t)
# ```
#
# From 1.50 to 0.18 at the learned factor of 37, and from 3.43 to 0.62 at 100: there the loss starts
# higher, and most of the gradient comes from the few pairs that are confused.
#
# </details>

# %%
row_ends = tokenize(["", "!", "a " * 300], truncate=True)[:, -1]
assert row_ends.tolist() == [0, 0, END_OF_TEXT]  # 1
large, larger = RELEASED["ViT-L/14"].vision.tokens, RELEASED["ViT-L/14@336px"].vision.tokens
assert (large, larger) == (257, 577) and round((larger / large) ** 2, 2) == 5.04  # 2
perfect_4 = reference.contrastive_loss(np.eye(4), np.eye(4), 0.0)
assert np.isclose(perfect_4, np.log(1 + 3 / np.e)) and round(perfect_4, 4) == 0.7437  # 4
assert round(np.log(1 + 32767 / np.e), 1) == 9.4 and round(np.log(32768), 1) == 10.4
twice = np.eye(8)[[0, 0, *range(2, 8)]]  # the first two pairs are equal
assert np.isclose(reference.contrastive_loss(twice, twice, np.log(100)), np.log(2) / 4)  # 5

f = 3 * np.random.default_rng(0).normal(size=I_e.shape)
with jax.enable_x64(True):
    through = jax.grad(
        lambda f: losses.contrastive_loss(losses.l2_normalize(f), jnp.asarray(T_e), jnp.asarray(t))
    )(jnp.asarray(f))
length = np.linalg.norm(f, axis=1, keepdims=True)
d = reference.contrastive_loss_gradient(f / length, T_e, t)[0]
g = (d - f / length * (d * f / length).sum(-1, keepdims=True)) / length
check("exercise 6", g, through, 1e-10, mistake=d / length)
assert [round(float(np.log(n)), 3) for n in (256, 2048)] == [5.545, 7.625]  # 7
assert 32768**2 * 4 == 4 * 2**30 and (32768 // 256) ** 2 * 4 == 64 * 2**10  # 8


def after_a_step(t):
    d_I, d_T, _ = reference.contrastive_loss_gradient(I_e, T_e, t)
    pair = [reference.l2_normalize(x - d) for x, d in ((I_e, d_I), (T_e, d_T))]
    return reference.contrastive_loss(*pair, t)


for factor in (np.exp(t), 100.0):  # 10
    start = reference.contrastive_loss(I_e, T_e, np.log(factor))
    print(
        f"factor {factor:5.1f}: loss {start:.3f}, after a step {after_a_step(np.log(factor)):.3f}"
    )
assert after_a_step(t) < reference.contrastive_loss(I_e, T_e, t)
print("all checks passed")
