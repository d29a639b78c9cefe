"""Plots: loss curve, similarity matrix, sheet of right and wrong answers, confusion matrix."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.checkpoint import replacing
from jaxclip.data.emoji.pictures import EmojiPictures
from jaxclip.terminal import printable


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # imported late: it costs half a second

    return Figure(figsize=(width, height), layout="constrained", dpi=100)


def _save(figure: Any, out: Path) -> None:
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png")


def on_white(image: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 4] -> uint8 [h, w, 3]."""
    opacity = image[..., 3:] / 255
    return np.round(image[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)


def loss_curve(metrics: Path, chance: float, out: Path) -> None:
    """Loss against step beside the chance level ln(batch), and validation top-1, from a log."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    scores = [(line["step"], 100 * line["top1"]) for line in lines if "top1" in line]
    figure = _figure(7, 4)
    left = figure.add_subplot()
    left.plot(*zip(*losses, strict=True), label="loss")
    left.axhline(chance, color="grey", linestyle=":", label="chance, ln(batch)")
    left.set(xlabel="step", ylabel="contrastive loss")
    handles = left.get_legend_handles_labels()
    if scores:
        right = left.twinx()
        right.plot(*zip(*scores, strict=True), "o-", color="tab:orange", label="validation top-1")
        right.set_ylabel("validation top-1 (%)")
        handles = tuple(
            a + b for a, b in zip(handles, right.get_legend_handles_labels(), strict=True)
        )
    left.legend(*handles, loc="center right")
    _save(figure, out)


def _shorten(name: str, width: int) -> str:
    """A name for an axis: short, printable, "$" escaped as it begins a formula in matplotlib."""
    return textwrap.shorten(printable(name), width, placeholder="...").replace("$", r"\$")


def similarity(images: np.ndarray, names: Sequence[str], cosines: np.ndarray, out: Path) -> None:
    """Cosines [n, n] of n pictures (across) with n captions (down)."""
    n = len(names)
    figure = _figure(1 + 0.9 * n, 1 + 0.8 * n)
    grid = figure.add_gridspec(2, n, height_ratios=[1, n])
    for i, image in enumerate(images):
        axes = figure.add_subplot(grid[0, i])
        axes.imshow(on_white(image))
        axes.axis("off")
    axes = figure.add_subplot(grid[1, :])
    axes.imshow(cosines.T, cmap="viridis", aspect="auto")
    axes.set_yticks(range(n), [_shorten(name, 28) for name in names])
    axes.set_xticks([])
    for i, j in np.ndindex(n, n):
        axes.text(i, j, f"{cosines[i, j]:.2f}", ha="center", va="center", color="white")
    _save(figure, out)


def answer_sheet(
    pictures: EmojiPictures, classes: Sequence[str], scores: np.ndarray, out: Path, rows: int = 4
) -> None:
    """As many right answers (green) as wrong ones (red), drawn at random: scores [n, classes]."""
    answers = np.array(classes)[scores.argmax(axis=1)]
    right = answers == np.array(pictures.names)
    rng = np.random.default_rng(0)
    figure = _figure(13, 3.6 * rows / 2)
    columns = 8
    for half, which in enumerate((right, ~right)):
        candidates = np.flatnonzero(which)
        chosen = rng.permutation(candidates)[: columns * rows // 2]
        for k, i in enumerate(chosen):
            axes = figure.add_subplot(rows, columns, half * columns * rows // 2 + k + 1)
            axes.imshow(on_white(pictures.images[i]))
            axes.axis("off")
            colour = "tab:green" if right[i] else "tab:red"
            title = answers[i] if right[i] else f"{answers[i]}\n(is: {pictures.names[i]})"
            axes.set_title("\n".join(textwrap.wrap(title, 20)[:4]), fontsize=7, color=colour)
    _save(figure, out)


def confusion_figure(counts: np.ndarray, classes: Sequence[str]) -> Any:
    """A confusion matrix [c, c], label down, answer across, as shares of every row.

    Up to thirty classes are named, with their counts in the cells.
    """
    c = len(classes)
    named = c <= 30
    figure = _figure(*(2.5 + 0.45 * c, 2 + 0.45 * c) if named else (9, 8))
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    drawn = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    axes.set(xlabel="answer", ylabel="label")
    figure.colorbar(drawn, label="share of the label's pictures")
    if named:
        short = [_shorten(name, 24) for name in classes]
        axes.set_xticks(range(c), short, rotation=90)
        axes.set_yticks(range(c), short)
        for i, j in np.argwhere(counts > 0):
            colour = "black" if shares[i, j] > 0.6 else "white"
            axes.text(j, i, int(counts[i, j]), ha="center", va="center", color=colour, fontsize=6)
    return figure


def confusion(counts: np.ndarray, classes: Sequence[str], out: Path) -> None:
    """Write `confusion_figure` as a PNG file."""
    _save(confusion_figure(counts, classes), out)
