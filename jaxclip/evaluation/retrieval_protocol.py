"""Retrieval both ways, from a picture to its captions and from a caption to its picture.

A picture may have several captions: from picture to text the best one counts, from text to picture
each caption is a query of its own.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.data.captions import read_caption_file
from jaxclip.data.pairs import Source, open_pairs
from jaxclip.data.spec import parse_spec
from jaxclip.data.stream import Skips
from jaxclip.evaluation import prompts, results
from jaxclip.evaluation.features import Block, map_batches
from jaxclip.evaluation.metrics import Retrieved, retrieve
from jaxclip.evaluation.protocol import Figures, Setup
from jaxclip.evaluation.resumable import Arrays, KeptBlocks
from jaxclip.evaluation.retrieval import captions, embed_pairs, why_unusable

WAYS = ("image_to_text", "text_to_image")


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Pairs to retrieve, and the prompt around every caption.

    data: the dataset spec. dataset: its name, such as "coco".
    prompt: a template with one slot {}; the paper's is "a photo of {}".
    expected: {way: published figures for its R@1}; None where nothing is to be compared.
    """

    data: str
    pairs: Source
    dataset: str = "custom"
    prompt: str = "{}"
    expected: Mapping[str, Figures] | None = None


def open_captioned(
    data: str,
    captions: Path | None = None,
    split: str = "",
    only: Path | None = None,
    data_dir: Path | None = None,
) -> Source:
    """The pairs of a dataset spec, or of a caption file with `data` as the folder of its pictures.

    split, only: which pictures of the caption file, as `read_caption_file` takes them.
    """
    if captions is None:
        if split or only:
            raise ValueError("expected --captions beside --split and --only, got none")
        return open_pairs(parse_spec(data), data_dir)
    folder = Path(data)
    if not folder.is_dir():
        raise ValueError(f"data: expected the folder of the pictures, got {data!r}")
    return read_caption_file(captions, folder, split, only)


def run_retrieval(task: Retrieval, setup: Setup) -> dict[str, Any]:
    """Encode, rank, write the result to `setup.out`, and return it."""
    (prompt,) = prompts.require_slots([task.prompt])
    setup.require_no_result()
    skips, texts = Skips(setup.skip_limit), list[str]()

    def encode_text(captions: Sequence[str]) -> np.ndarray:
        texts.extend(prompt.format(caption) for caption in captions)
        tokens = setup.model.tokenize(texts, truncate=True)
        return map_batches(setup.model.encode_text, tokens, 256)

    key = setup.key(
        task.pairs,
        "captions",
        command="retrieval",
        data=task.data,
        dataset=task.dataset,
        model=setup.name,
        prompt=prompt,
        batch_size=setup.batch_size,
    )
    blocks = setup.encode(
        task.pairs,
        setup.out / "parts",
        key,
        skips,
        describe_block,
        usable=why_unusable,
        what="pictures",
    )
    I_e, T_e, owner = embed_pairs(read_blocks(blocks), encode_text)
    result = describe_retrieval(task, setup, retrieve(I_e, T_e, owner), owner)
    result |= {"skipped": dict(skips.counts), "checksums": setup.checksums(texts)}
    results.save(setup.out, result, None)
    blocks.remove()
    return result


def describe_block(block: Block) -> Arrays:
    """What is kept of a block: `features` [b, e], `texts` [m], `counts` [b] of them a picture."""
    texts = [captions(pair) for pair in block.items]
    flat = np.array([caption for of_picture in texts for caption in of_picture], np.str_)
    counts = np.array([len(of_picture) for of_picture in texts], np.int64)
    return {"features": block.features, "texts": flat, "counts": counts}


def read_blocks(blocks: KeptBlocks) -> Iterator[tuple[np.ndarray, list[list[str]]]]:
    """The kept blocks, as `embed_pairs` takes them."""
    for path in blocks.paths:
        with np.load(path, allow_pickle=False) as arrays:
            cuts = np.cumsum(arrays["counts"])[:-1]
            of_picture = np.split(arrays["texts"], cuts) if len(arrays["counts"]) else []
            yield arrays["features"], [[str(text) for text in texts] for texts in of_picture]


def describe_retrieval(
    task: Retrieval, setup: Setup, found: Retrieved, owner: np.ndarray
) -> dict[str, Any]:
    """The object of result.json, but for `skipped` and `checksums`."""
    metrics = found.metrics()
    intervals = {name: list(found.interval(name, owner)) for name in metrics}
    described = {
        "experiment": "retrieval",
        "data": task.data,
        "dataset": task.dataset,
        "model": setup.name,
        "metric": "image_to_text_r1",
        "value": metrics["image_to_text_r1"],
        "interval": intervals["image_to_text_r1"],
        "metrics": metrics,
        "intervals": intervals,
        "n": len(found.image_to_text),
        "captions": len(owner),
        "prompt": task.prompt,
        "policy": setup.policy,
        "versions": results.read_versions(),
        "date": results.now(),
    }
    if task.expected is not None:
        described |= compare_ways(metrics, intervals, task.expected)
    return described


def compare_ways(
    metrics: Mapping[str, float],
    intervals: Mapping[str, list[float]],
    expected: Mapping[str, Figures],
) -> dict[str, Any]:
    """`expected`, `expected_text_to_image` and `verdict` of result.json."""
    verdicts = []
    for way in WAYS:
        low, high = intervals[f"{way}_r1"]
        found = results.verdict(metrics[f"{way}_r1"], (low, high), expected[way])
        verdicts.append(f"{way}: {found}")
    return {
        "expected": list(expected["image_to_text"]),
        "expected_text_to_image": list(expected["text_to_image"]),
        "verdict": "; ".join(verdicts),
    }
