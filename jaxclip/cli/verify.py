"""The command that proves a model: verify."""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.table import Table

from jaxclip.cli.shared import (
    FAILED,
    AsJson,
    UsageError,
    load_model,
    print_line,
    print_table,
    stderr,
)
from jaxclip.config import Activation, ClipConfig, TextConfig
from jaxclip.files import require_writable

DEFAULT_TEXTS = ("a diagram", "a dog", "a cat")  # of the official README


def _check_verify(
    against: Path | None, record: Path | None, picture: Path | None, texts: Any, force: bool
) -> None:
    """UsageError where flags of `verify` are no good, before anything is loaded."""
    if against is not None and (picture is not None or texts != DEFAULT_TEXTS):
        raise UsageError("--against brings its own pixels and tokens; leave out --picture, --texts")
    if not texts or not all(text.strip() for text in texts):
        raise UsageError("--texts holds no text or an empty one; give one or more texts")
    if record is not None and record.exists() and not force:
        raise UsageError(f"{record} is there already; add --force or another --record")
    if record is not None:
        require_writable(record)


def _random_tokens(text: TextConfig) -> np.ndarray:
    """Ids [3, l] for a vocabulary that is not CLIP's: random ones, then the largest, then zeros."""
    rng, length = np.random.default_rng(0), text.context_length
    tokens = np.zeros((3, length), np.int32)
    for row, end in zip(tokens, (length - 1, length // 2, 0), strict=True):
        row[:end] = rng.integers(0, max(1, text.vocab_size - 1), end)
        row[end] = text.vocab_size - 1 if text.end_token is None else text.end_token
    return tokens


def _inputs(
    preprocess: Any, text: TextConfig, picture: Path | None, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, bytes]:
    """(pixels [n, h, w, c], tokens [m, l], the picture's file) that a model is verified on."""
    from PIL import Image

    from jaxclip.files import read_bytes
    from jaxclip.images.open import open_image
    from jaxclip.model_tokenizer import tokenize_for
    from jaxclip.tokenizer import check_vocabulary

    if texts:
        tokens = tokenize_for(text, list(texts))
        check_vocabulary(tokens, text.vocab_size)
    else:
        tokens = _random_tokens(text)
    if picture is not None:
        return preprocess(open_image(picture))[None], tokens, read_bytes(picture)
    from jaxclip.data.emoji.pictures import load_emoji

    drawings = load_emoji("test").images[:2]
    pixels = np.stack([preprocess(Image.fromarray(drawing)) for drawing in drawings])
    return pixels, tokens, b""


def _texts(config: ClipConfig, texts: tuple[str, ...]) -> tuple[str, ...]:
    """The texts to run: none where nobody named any and the tokenizer is not the model's."""
    from jaxclip.tokenizer import VOCAB_SIZE

    own = config.text.tokenizer
    has_words = config.text.vocab_size >= VOCAB_SIZE if own is None else own.sha256 is not None
    if texts != DEFAULT_TEXTS or has_words:
        return texts
    print(
        f"the vocabulary of the model is {config.text.vocab_size}, that of CLIP's tokenizer "
        f"{VOCAB_SIZE}: random ids are run instead of texts",
        file=sys.stderr,
    )
    return ()


def _remade(
    preprocess: Any, text: TextConfig, expected: dict[str, np.ndarray], about: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Tokens and pixels made anew from the texts and the picture that a recorded ladder names."""
    from jaxclip.images.open import decode_image
    from jaxclip.model_tokenizer import tokenize_for

    made: dict[str, np.ndarray] = {}
    if "texts" in about:
        made["tokens"] = tokenize_for(text, list(about["texts"]), expected["tokens"].shape[1])
    if "picture" in expected:
        made["pixels"] = preprocess(decode_image(expected["picture"].tobytes()))[None]
    return made


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def _released_name(model: str, notes: dict[str, Any]) -> str:
    """The released model whose file has this SHA-256; `model` if none has."""
    from jaxclip.hub.find import source_sums
    from jaxclip.hub.released import RELEASED_FILES

    came_from = source_sums(notes)
    names = [name for name, file in RELEASED_FILES.items() if file.sha256 in came_from]
    return names[0] if names else model


def _judged(
    module: Any, images: np.ndarray, tokens: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, float]]:
    """(the model's rungs, its ladder beside the reference's, the bound of every stage)."""
    from jaxclip import parity
    from jaxclip.models.parameters import to_flat

    stderr.print("running the model ...")
    got = parity.model_rungs(module, images, tokens)
    flat = to_flat(module)
    double, bounds = parity.judge(flat, module.config, images, tokens, stderr.print)
    return got, {"reference, float64": parity.compare(got, double, bounds)}, bounds


def _show_ladders(model: str, ladders: dict[str, Any], numerics: str, as_json: bool) -> int:
    from jaxclip import parity

    first = {judge: parity.first_departure(rungs) for judge, rungs in ladders.items()}
    holds = not any(first.values())
    if as_json:
        rows = {
            judge: [
                {**dataclasses.asdict(rung), "relative": rung.relative, "holds": rung.holds}
                for rung in rungs
            ]
            for judge, rungs in ladders.items()
        }
        departs = {judge: rung and rung.name for judge, rung in first.items()}
        record = {"model": model, "holds": holds, "first_departure": departs, "ladders": rows}
        print(json.dumps({**record, "numerics": numerics}))
        return 0 if holds else FAILED
    for judge, rungs in ladders.items():
        title = f"{model} against {judge}"
        table = Table("stage", "max error", "relative", "bound", "", title=title)
        for rung in rungs:
            numbers = (f"{x:.1e}" for x in (rung.error, rung.relative, rung.bound))
            table.add_row(rung.name, *numbers, "" if rung.holds else "DEPARTS")
        print_table(table)
        found = first[judge]
        print_line("every stage holds" if found is None else f"first to depart: {found.name}")
    if "published" not in ladders:
        print_line("published logits: none for these weights, this picture and these texts")
    print_line(numerics)
    return 0 if holds else FAILED


def verify(
    model: Annotated[str, tyro.conf.Positional] = "emoji",
    against: Path | None = None,
    record: Path | None = None,
    picture: Path | None = None,
    texts: tuple[str, ...] = DEFAULT_TEXTS,
    activation: Activation | None = None,
    heads: tuple[int, int] | None = None,
    precision: Literal["default", "high", "highest"] = "highest",
    force: bool = False,
    as_json: AsJson = False,
) -> int:
    """Prove a model: compare it stage by stage with the NumPy reference in float64.

    Prints the largest error of every stage and names the first that departs. A stage may depart by
    4 times what float32 costs the reference itself, and by 2e-5 of its largest value: the reference
    runs twice. Where the weights and the picture are ones that logits were published for, those are
    compared as well. The exit code is 0 when everything holds and 1 when something departs.

    Args:
        model: "emoji", a released model's name, a run folder, a checkpoint file or a Hub id.
        against: Compare with a recorded ladder too: its pixels and tokens are what is run.
        record: Write the stages of this model to a file, for --against elsewhere.
        picture: A picture file to run; two embedded drawings when none is named.
        texts: Texts to run; random ids where the model has another vocabulary than CLIP's.
        activation: Of a file that does not say which one it needs.
        heads: Attention heads of the image and the text tower, of a file that does not say them.
        precision: Of matrix products. The bounds are those of float32, which on a GPU or TPU only
            "highest" is.
        force: Overwrite what is there.
        as_json: Print one JSON object instead of tables.
    """
    from jaxclip import parity

    _check_verify(against, record, picture, texts, force)
    began = time.monotonic()
    if against is not None:
        expected, about = parity.recorded(against)
    said: dict[str, Any] = {"activation": activation, "heads": heads}
    loaded, preprocess = load_model(model, **said, precision=precision)
    config = loaded.config
    content = b""
    if against is not None:
        left_out = parity.check_recorded(expected, about, config)
        made = _remade(preprocess, config.text, expected, about)
        if left_out:
            print(f"not compared: {_some(left_out)}, no stages of this model", file=sys.stderr)
        texts = tuple(about.get("texts", ()))
        images, tokens = parity.runnable(expected)
    else:
        texts = _texts(config, texts)
        images, tokens, content = _inputs(preprocess, config.text, picture, texts)
    got, ladders, bounds = _judged(loaded, images, tokens)
    if against is not None:
        ladder = parity.compare(got | made, expected, bounds)
        ladders[f"recorded by {about.get('by', against)}"] = ladder
    name = _released_name(model, loaded.notes)
    digest = hashlib.sha256(content).hexdigest()
    published = parity.published_rung(name, digest, texts, got["logits"][0]) if content else None
    if published is not None:
        ladders["published"] = [published]
    if record is not None:
        extra = {"picture": np.frombuffer(content, np.uint8)} if content else {}
        told: dict[str, Any] = {"by": f"jaxclip, {parity.in_force()}", "model": model}
        told |= {"texts": texts} if texts else {}
        parity.record(record, got | extra, told)
    numerics = f"{parity.in_force()}; this model's {precision}, {time.monotonic() - began:.0f} s"
    return _show_ladders(model, ladders, numerics, as_json)
