"""Commands that run a model or its tokenizer: classify, embed, tokenize."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.table import Table

from jaxclip.cli.shared import (
    AsJson,
    UsageError,
    load_model,
    open_model,
    print_line,
    print_table,
    require_whole_flag,
    show_progress,
    stderr,
    warn_embedded,
)
from jaxclip.config import RELEASED, TextConfig
from jaxclip.files import require_writable


def _labels(labels: Sequence[str]) -> list[str]:
    cleaned = [label.strip() for label in labels]
    if not all(cleaned) or not cleaned:
        raise UsageError("--labels holds an empty label; give one or more words to choose from")
    twice = sorted({label for label in cleaned if cleaned.count(label) > 1})
    if twice:
        raise UsageError(f"--labels names {twice[0]!r} twice; give each label once")
    return cleaned


def classify(
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional],
    labels: tuple[str, ...],
    model: str = "emoji",
    prompts: tuple[str, ...] = ("{}",),
    as_json: AsJson = False,
) -> int:
    """Rank labels for pictures: which words fit best?

    Args:
        pictures: Picture files and folders; folders are walked.
        labels: Words to choose from; any words, not a fixed list of classes.
        model: "emoji" (the embedded model), a released model's name, a run folder, a
            checkpoint file or the id of a model on the Hugging Face Hub.
        prompts: Templates with one slot {}; the text embeddings of all are averaged.
        as_json: Print one JSON object a picture instead of tables.
    """
    chosen = _labels(labels)
    paths = _files(pictures)
    opened = open_model(model)
    clip, _ = load_model(opened, of=model, tower="text", arrange=True)
    from jaxclip.evaluation.classifier_cache import cached_classifier
    from jaxclip.evaluation.features import map_batches, require_finite
    from jaxclip.hub.released import cache_folder
    from jaxclip.images.open import open_image
    from jaxclip.reference import l2_normalize

    text_embeds = cached_classifier(clip, chosen, prompts, cache_folder())
    del clip  # one tower after the other: only the larger one has to fit into memory
    clip, preprocess = load_model(opened, of=model, tower="image", arrange=True)
    images = np.stack([preprocess.safe(open_image(path)) for path in paths])
    features = map_batches(clip.encode_image, images, min(len(images), 32))
    image_embeds = l2_normalize(require_finite(features, "the pictures"))
    logits = np.asarray(clip.logits(image_embeds, text_embeds))  # [n, c]
    probabilities = np.asarray(clip.probabilities(logits))
    kind = "sigmoid" if clip.config.logit_bias else "softmax"
    warn_embedded(model)
    for path, row, scores in zip(paths, probabilities, logits, strict=True):
        ranking = [
            {"label": chosen[i], "probability": float(row[i]), "logit": float(scores[i])}
            for i in np.argsort(-scores)
        ]
        record = {"picture": str(path), "model": model, "policy": "safe", "probabilities": kind}
        _show_ranking(record | {"labels": ranking}, as_json)
    return 0


def _show_ranking(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
        return
    alone = record["probabilities"] == "sigmoid"
    column = "probability (each label on its own)" if alone else "probability"
    table = Table("label", column, title=record["picture"], title_justify="left")
    for entry in record["labels"]:
        table.add_row(entry["label"], f"{100 * entry['probability']:5.1f} %")
    print_table(table)


def _files(paths: Sequence[Path]) -> list[Path]:
    """The picture files among files and in folders, which `find_pictures` walks."""
    from jaxclip.data.folders import find_pictures
    from jaxclip.images.open import SUFFIXES

    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = find_pictures(path)
            inside.log_left_out()
            if not inside.pictures:
                raise UsageError(f"{path} holds no picture ({', '.join(SUFFIXES)})")
            found += inside.pictures
        else:
            found.append(path)
    if not found:
        raise UsageError("no picture was given; name one or more picture files or folders")
    return found


def embed(
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path,
    model: str = "emoji",
    policy: Literal["safe", "official"] = "safe",
    batch_size: int = 32,
    normalize: bool = True,
    skip_limit: int = 100,
    force: bool = False,
) -> int:
    """Write the image embeddings of pictures to a NumPy .npz file: `embeds` [n, e], `files` [n].

    Args:
        pictures: Picture files and folders; folders are walked.
        out: The .npz file to write.
        model: "emoji", a released model's name, a run folder, a checkpoint file or a Hub id.
        policy: How pictures become pixels: "safe" (rotation applied, transparency on white) or
            "official" (the released pipeline, bit for bit).
        batch_size: Pictures that go through the model at once.
        normalize: Scale every row to length one.
        skip_limit: Broken pictures that are counted and left out before the command fails.
        force: Overwrite the file.
    """
    paths = _files(pictures)
    if out.suffix != ".npz":
        raise UsageError(f"--out: expected a file ending in .npz, got {out}")
    if out.is_dir():
        raise UsageError(f"--out: expected the name of a file, got a folder, {out}")
    if out.exists() and not force:
        raise UsageError(f"{out} is there already; add --force or another --out")
    require_writable(out)
    require_whole_flag("--batch-size", batch_size, 1, 2**20)
    require_whole_flag("--skip-limit", skip_limit, 0)
    clip, preprocess = load_model(model, tower="image", arrange=True)
    from jaxclip.checkpoint import replacing
    from jaxclip.evaluation.features import map_batches, require_finite
    from jaxclip.reference import l2_normalize

    to_pixels = preprocess.safe if policy == "safe" else preprocess
    parts: list[np.ndarray] = []
    kept: list[str] = []
    broken = 0
    for names, pixels, errors in _decoded(paths, to_pixels, batch_size):
        for error in errors:
            stderr.print(f"left out: {error}", highlight=False, soft_wrap=True)
        broken += len(errors)
        if broken > skip_limit:
            raise ValueError(f"{broken} pictures are broken, --skip-limit is {skip_limit}")
        if names:
            features = map_batches(clip.encode_image, pixels, min(batch_size, len(paths)))
            parts.append(require_finite(features, f"{names[0]} or after"))
            kept += names
    if not kept:
        raise ValueError(f"none of the {len(paths)} pictures could be read; nothing was written")
    embeds = np.concatenate(parts).astype(np.float32)
    with replacing(out) as temporary, open(temporary, "wb") as file:
        np.savez(file, embeds=l2_normalize(embeds) if normalize else embeds, files=np.array(kept))
    warn_embedded(model)
    print_line(
        f"wrote {out}: {len(kept)} embeddings of {embeds.shape[1]}, {broken} pictures left out"
    )
    return 0


def _decoded(
    paths: Sequence[Path], to_pixels: Callable[[Any], np.ndarray], batch_size: int
) -> Iterator[tuple[list[str], np.ndarray, list[str]]]:
    """Batches of (names, pixels [n, h, w, c], errors), decoded on all cores, with a progress bar.

    A batch is decoded while the one before it is encoded.
    """
    from concurrent.futures import ThreadPoolExecutor

    from jaxclip.data.ahead import read_ahead
    from jaxclip.images.open import open_image

    def read(path: Path) -> np.ndarray | str:
        try:
            return to_pixels(open_image(path))
        except (ValueError, OSError) as error:
            return " ".join(str(error).split())

    blocks = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
    with ThreadPoolExecutor() as pool:
        decoded = read_ahead(
            [(str(path), x) for path, x in zip(block, pool.map(read, block), strict=True)]
            for block in blocks
        )
        for batch in show_progress(decoded, "embedding", len(blocks)):
            good = [(name, x) for name, x in batch if not isinstance(x, str)]
            errors = [x for _, x in batch if isinstance(x, str)]
            yield [name for name, _ in good], np.array([x for _, x in good]), errors


def tokenize(
    texts: Annotated[tuple[str, ...], tyro.conf.Positional],
    model: str = "",
    show: bool = False,
    truncate: bool = False,
    as_json: AsJson = False,
) -> int:
    """Show the tokens of texts, as a model's own tokenizer cuts them.

    Args:
        texts: One or more texts.
        model: Whose tokenizer: a checkpoint in any form that jaxclip loads; CLIP's unless given.
        show: Show the row that the model gets (77 of CLIP's), one token a line: start, pieces, end,
            padding.
        truncate: With --show, cut a text that is too long instead of refusing it.
        as_json: Print one JSON object a text.
    """
    from jaxclip.model_tokenizer import encode_for, pieces_of

    if not texts:
        raise UsageError("no text was given; name one or more texts")
    config = _text_config(model)
    if show:
        return _show_rows(config, texts, truncate, as_json)
    for text in texts:
        ids = encode_for(config, text)
        pieces = pieces_of(config, ids)
        if as_json:
            print(json.dumps({"text": text, "ids": ids, "pieces": pieces}))
        else:
            print_line(" ".join(f"{piece}|{i}" for piece, i in zip(pieces, ids, strict=True)))
    return 0


def _text_config(model: str) -> TextConfig:
    """Of the model's text tower; of the released models' tokenizer where none is named."""
    if not model or model in RELEASED:
        return RELEASED["ViT-B/32"].text
    from jaxclip import convert
    from jaxclip.hub.find import find

    text = convert.load(find(model), check_numbers=False).config.text
    if text is None:
        raise ValueError(f"{model}: expected a model with a text tower, got an image tower alone")
    return text


def _show_rows(config: TextConfig, texts: Sequence[str], truncate: bool, as_json: bool) -> int:
    """Each text as the model gets it; "end" is the last position that is not padding."""
    from jaxclip.model_tokenizer import filled, pieces_of, tokenize_for

    for text in texts:
        row = tokenize_for(config, text, truncate=truncate)[0]  # [l]
        first, end = filled(config, text)
        pieces = pieces_of(config, row[first : end + 1])
        if as_json:
            print(json.dumps({"text": text, "ids": row.tolist(), "pieces": pieces, "end": end}))
            continue
        table = Table("position", "id", "piece", title=repr(text), title_justify="left")
        padding = (str(config.tokenizer.pad if config.tokenizer else 0), "(padding)")
        if first > 0:
            table.add_row(f"0 to {first - 1}", *padding)
        for i, piece in enumerate(pieces, first):
            table.add_row(str(i), str(row[i]), repr(piece))
        if end + 1 < len(row):
            table.add_row(f"{end + 1} to {len(row) - 1}", *padding)
        print_table(table)
    return 0
