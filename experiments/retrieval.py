"""Retrieval both ways: from a picture to its captions, from a caption to its picture.

Question:  how often is a right caption (or the picture) among the first 1, 5 and 10?
Command:   python -m experiments.retrieval --data val2014 --captions dataset_coco.json \
               --split test --dataset coco --model ViT-L/14@336px --out runs/coco
Result:    result.json (jaxclip/evaluation/results.py) in --out; docs/experiments.md has ours.

A picture may have several captions: from picture to text the best placed one counts, from text to
picture each asks for itself. The paper puts "a photo of" before it: --prompt "a photo of {}". A run
that was interrupted goes on where it stopped when the same command is given again.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments import zero_shot
from experiments.lib import common, keys
from experiments.lib.resumable import Parts
from jaxclip.cli.shared import load_model, print_line, print_table, warn_embedded
from jaxclip.data.captions import caption_file
from jaxclip.data.pairs import Source, opened
from jaxclip.data.spec import place
from jaxclip.data.stream import Skips
from jaxclip.evaluation import prompts, results
from jaxclip.evaluation.features import Block
from jaxclip.evaluation.metrics import Retrieved, retrieve
from jaxclip.evaluation.retrieval import embedded, unusable, words
from jaxclip.evaluation.zero_shot import in_blocks
from jaxclip.tokenizer import tokenize

WAYS = ("image_to_text", "text_to_image")
DATASETS = ("coco", "flickr30k", "custom")


def source(arguments: argparse.Namespace) -> Source:
    """The pairs that the flags name."""
    if arguments.captions is None:
        if arguments.split or arguments.only:
            raise ValueError("--split and --only belong to --captions, which was not given")
        return opened(place(arguments.data), arguments.data_dir)
    folder = Path(arguments.data)
    if not folder.is_dir():
        raise ValueError(f"--data {folder} came, the folder of the pictures was expected")
    return caption_file(arguments.captions, folder, arguments.split, arguments.only)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Embed, compare, write, and return the result."""
    (prompt,) = prompts.checked([arguments.prompt])
    if (arguments.out / "result.json").exists() and not arguments.force:
        raise ValueError(f"{arguments.out} holds a result already; add --force or another --out")
    pairs = source(arguments)
    model, preprocess = load_model(arguments.model, arrange=True)
    skips, captions = Skips(arguments.skip_limit), list[str]()

    def encode(texts: Sequence[str]) -> np.ndarray:
        captions.extend(prompt.format(text) for text in texts)
        tokens = tokenize(captions, model.config.text.context_length, truncate=True)
        return in_blocks(model.encode_text, tokens, 256)

    apart = ("force", "out", "skip_limit")  # they change no number
    asked = {name: str(value) for name, value in vars(arguments).items() if name not in apart}
    of_model = keys.of_model(model, preprocess, arguments.policy)
    key = keys.of_values(**asked) | of_model | keys.of_source(pairs, "captions")
    parts = Parts(arguments.out / "parts", key, skips, arguments.force)
    parts.fill(
        pairs,
        zero_shot.to_pixels(preprocess, arguments.policy),
        model.encode_image,
        captioned,
        usable=unusable,
        block=arguments.batch_size,
        what="pictures",
    )
    I_e, T_e, owner = embedded(read(parts), encode)
    result = described(arguments, retrieve(I_e, T_e, owner), owner)
    result["skipped"] = dict(skips.counts)
    result["checksums"] = zero_shot.checked_sums(model, preprocess, captions, arguments.policy)
    results.save(arguments.out, result, None)
    parts.remove()
    return result


def captioned(block: Block) -> dict[str, np.ndarray]:
    """What is kept of a block: `features` [b, e], `texts` [m], `counts` [b] of them a picture."""
    texts = [words(pair) for pair in block.items]
    flat = np.array([caption for captions in texts for caption in captions], np.str_)
    counts = np.array([len(captions) for captions in texts], np.int64)
    return {"features": block.features, "texts": flat, "counts": counts}


def read(parts: Parts) -> Iterator[tuple[np.ndarray, list[list[str]]]]:
    """The blocks that were kept, as `embedded` takes them."""
    for path in parts.paths:
        with np.load(path, allow_pickle=False) as arrays:
            cuts = np.cumsum(arrays["counts"])[:-1]
            of_picture = np.split(arrays["texts"], cuts) if len(arrays["counts"]) else []
            yield arrays["features"], [[str(text) for text in texts] for texts in of_picture]


def described(arguments: argparse.Namespace, found: Retrieved, owner: np.ndarray) -> dict[str, Any]:
    """The object of result.json, but for `skipped` and `checksums`."""
    metrics = found.metrics()
    intervals = {name: list(found.interval(name, owner)) for name in metrics}
    figures = {
        way: common.published(arguments.dataset, arguments.model, f"{way}_r1") for way in WAYS
    }
    verdicts = [
        f"{way}: {common.verdict(metrics[f'{way}_r1'], intervals[f'{way}_r1'], figures[way])}"
        for way in WAYS
    ]
    return {
        "experiment": "retrieval",
        "data": arguments.data,
        "dataset": arguments.dataset,
        "model": arguments.model,
        "metric": "image_to_text_r1",
        "value": metrics["image_to_text_r1"],
        "interval": intervals["image_to_text_r1"],
        "metrics": metrics,
        "intervals": intervals,
        "n": len(found.image_to_text),
        "captions": len(owner),
        "expected": figures["image_to_text"],
        "expected_text_to_image": figures["text_to_image"],
        "verdict": "; ".join(verdicts),
        "prompt": arguments.prompt,
        "policy": arguments.policy,
        "versions": common.surroundings(),
        "date": common.now(),
    }


def show(result: dict[str, Any], out: Path) -> None:
    """The result as people read it, on standard output."""
    warn_embedded(result["model"])
    title = f"{result['dataset']}, {result['model']}: {result['n']} pictures"
    table = Table("metric", "%", "95 % interval", title=f"{title}, {result['captions']} captions")
    for name, value in result["metrics"].items():
        low, high = (100 * x for x in result["intervals"][name])
        table.add_row(name.replace("_", " "), f"{100 * value:.1f}", f"{low:.1f} to {high:.1f}")
    print_table(table)
    for reason, count in result["skipped"].items():
        print_line(f"left out: {count}, {reason}")
    print_line(f"published: {result['verdict']}")
    print_line(f"wrote {out}")


def flags() -> common.Parser:
    """The command line."""
    made = zero_shot.parser("retrieval", __doc__.splitlines()[0])
    flag = made.add_argument
    flag("--data", required=True, help="any pairs, or the folder of pictures for --captions")
    flag("--captions", type=Path, help="a caption file of COCO, Karpathy or Flickr30k")
    flag("--split", default="", help="of Karpathy's file: test")
    flag("--only", type=Path, help="a file with the wanted pictures' names, one a line")
    flag("--dataset", choices=DATASETS, default="custom", help="whose published figures to show")
    flag("--prompt", default="{}", help="what a caption is put into")
    return made


def main(given: Sequence[str]) -> int:
    """Run the command line; the exit code."""

    def work(arguments: argparse.Namespace) -> None:
        show(run(arguments), arguments.out)

    return common.run(flags(), work, given)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
