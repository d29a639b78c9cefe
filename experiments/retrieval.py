"""Retrieval both ways: from a picture to its captions, from a caption to its picture.

Question:  how often is a right caption (or the picture) among the first 1, 5 and 10?
Command:   python -m experiments.retrieval --data val2014 --captions dataset_coco.json \
               --split test --dataset coco --model ViT-L/14@336px --out runs/coco
Result:    result.json (jaxclip/evaluation/results.py) in --out; docs/experiments.md has ours.

A picture may have several captions: from picture to text the best placed one counts, from text to
picture each asks for itself. The paper puts "a photo of" before it: --prompt "a photo of {}".
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from rich.table import Table

from experiments import common, zero_shot
from jaxclip.cli.shared import load_model, print_table, stderr
from jaxclip.data.captions import caption_file
from jaxclip.data.pairs import Pair, Source, opened
from jaxclip.data.place import place
from jaxclip.data.stream import Skips
from jaxclip.evaluation import prompts, results
from jaxclip.evaluation.compiled import weights_checksum
from jaxclip.evaluation.features import streamed
from jaxclip.evaluation.metrics import retrieve
from jaxclip.evaluation.zero_shot import in_blocks, unit
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


def words(pair: Pair) -> list[str]:
    """The captions that hold something."""
    return [caption.strip() for caption in pair.captions if caption.strip()]


def unusable(pair: Pair) -> str | None:
    """Why a pair cannot count, whatever its picture is."""
    return None if words(pair) else "no caption"


def embedded(
    arguments: argparse.Namespace, model: Any, preprocess: Any, pairs: Source, skips: Skips
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """(image embeds [n, e], m captions, int [m]: the picture that each belongs to)."""
    blocks = streamed(
        pairs,
        preprocess.safe if arguments.policy == "safe" else preprocess,
        model.encode_image,
        skips=skips,
        usable=unusable,
        block=arguments.batch_size,
    )
    total = -(-len(pairs) // arguments.batch_size)
    features: list[np.ndarray] = []
    texts: list[list[str]] = []
    for block in track(blocks, "pictures", total=total, console=stderr):
        if block.items:
            features.append(block.features)
            texts += [words(pair) for pair in block.items]
    if not texts:
        raise ValueError(f"{arguments.data}: no picture with a caption could be used")
    owner = np.repeat(np.arange(len(texts)), [len(captions) for captions in texts])
    return unit(np.concatenate(features)), [c for captions in texts for c in captions], owner


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Embed, compare, write, and return the result."""
    (prompt,) = prompts.checked([arguments.prompt])
    if (arguments.out / "result.json").exists() and not arguments.force:
        raise ValueError(f"{arguments.out} holds a result already; add --force or another --out")
    pairs = source(arguments)
    model, preprocess = load_model(arguments.model)
    skips = Skips(arguments.skip_limit)
    I_e, captions, owner = embedded(arguments, model, preprocess, pairs, skips)
    length = model.config.text.context_length
    tokens = tokenize([prompt.format(c) for c in captions], length, truncate=True)
    T_e = unit(np.asarray(in_blocks(model.encode_text, tokens, 256), np.float32))
    found = retrieve(I_e, T_e, owner)
    metrics = found.metrics()
    expected = {
        way: common.published(arguments.dataset, arguments.model, f"{way}_r1") for way in WAYS
    }
    intervals = {name: list(found.interval(name, owner)) for name in metrics}
    verdicts = (
        f"{way}: {common.verdict(metrics[f'{way}_r1'], intervals[f'{way}_r1'], expected[way])}"
        for way in WAYS
    )
    result = {
        "experiment": "retrieval",
        "data": arguments.data,
        "dataset": arguments.dataset,
        "model": arguments.model,
        "metric": "image_to_text_r1",
        "value": metrics["image_to_text_r1"],
        "interval": intervals["image_to_text_r1"],
        "metrics": metrics,
        "intervals": intervals,
        "n": len(I_e),
        "captions": len(captions),
        "skipped": dict(skips.counts),
        "expected": expected["image_to_text"],
        "expected_text_to_image": expected["text_to_image"],
        "verdict": "; ".join(verdicts),
        "prompt": prompt,
        "policy": arguments.policy,
        "checksums": {
            "weights": weights_checksum(model.module),
            "prompts": zero_shot.digest([prompt, captions]),
            "preprocessing": zero_shot.digest([arguments.policy, preprocess.size]),
        },
        "versions": common.surroundings(),
        "date": common.now(),
    }
    results.save(arguments.out, result, None)
    return result


def show(result: dict[str, Any], out: Path) -> None:
    """The result as people read it, on standard output."""
    title = f"{result['dataset']}, {result['model']}: {result['n']} pictures"
    table = Table("metric", "%", "95 % interval", title=f"{title}, {result['captions']} captions")
    for name, value in result["metrics"].items():
        low, high = (100 * x for x in result["intervals"][name])
        table.add_row(name.replace("_", " "), f"{100 * value:.1f}", f"{low:.1f} to {high:.1f}")
    print_table(table)
    for reason, count in result["skipped"].items():
        print(f"left out: {count}, {reason}")
    print(f"published: {result['verdict']}")
    print(f"wrote {out}")


def main(given: Sequence[str]) -> int:
    """The command line; the exit code."""
    made = zero_shot.parser("retrieval", __doc__.splitlines()[0])
    flag = made.add_argument
    flag("--data", required=True, help="any pairs, or the folder of pictures for --captions")
    flag("--captions", type=Path, help="a caption file of COCO, Karpathy or Flickr30k")
    flag("--split", default="", help="of Karpathy's file: test")
    flag("--only", type=Path, help="a file with the wanted pictures' names, one a line")
    flag("--dataset", choices=DATASETS, default="custom", help="whose published figures to show")
    flag("--prompt", default="{}", help="what a caption is put into")

    def work(arguments: argparse.Namespace) -> None:
        show(run(arguments), arguments.out)

    return common.run(made, work, given)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
