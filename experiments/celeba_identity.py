"""CelebA identities by name: the article's Table 1, 100, 1,000 and 2,000 people to choose from.

Question:  how often is a person's own name the one that fits best?
Command:   python -m experiments.celeba_identity --data img_align_celeba \
               --identities identity_CelebA.txt --names names.txt --model ViT-L/14 --out runs/celeba
Result:    one folder a size in --out, each as experiments.zero_shot writes it.

identity_CelebA.txt has "000001.jpg 2880" a line, as the authors give it out on request. The names
come from a second file, either "2880 Some_Body" or "000001.jpg Some_Body" a line (so
list_identity_celeba.txt serves as it is). Which people and which 8,000 pictures Table 1 took is not
published: here people with a name are drawn by --seed, the smaller sets being parts of the larger,
and every picture of theirs is asked about.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments import zero_shot
from experiments.lib import common
from jaxclip.cli.shared import print_line, print_table, warn_embedded
from jaxclip.data.labelled import Files, aligned
from jaxclip.evaluation import prompts
from jaxclip.files import read_text, split_lines
from jaxclip.images.open import is_picture

SIZES = (100, 1000, 2000)


def pairs_of(path: Path) -> dict[str, str]:
    """{first word: the rest} of every line of a text file that has both."""
    lines = (line.split(maxsplit=1) for line in split_lines(read_text(path)))
    return {line[0]: line[1].strip() for line in lines if len(line) == 2}


def people(identities: Path, names: Path) -> dict[str, list[str]]:
    """{name: file names of the pictures} of everybody who has a name, sorted by name.

    ValueError when nobody has.
    """
    who = {f: i for f, i in pairs_of(identities).items() if is_picture(f)}
    named = pairs_of(names)
    by_picture = any(is_picture(key) for key in named)
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted(who):
        name = named.get(file if by_picture else who[file])
        if name is not None:
            found[name.replace("_", " ")].append(file)
    if not found:
        raise ValueError(f"{names} names nobody of {identities}; see --help for the two layouts")
    return dict(sorted(found.items()))


def drawn(there: Mapping[str, list[str]], size: int, seed: int) -> list[str]:
    """`size` names; fewer of the same seed are the first of more. ValueError if there are fewer."""
    if not 2 <= size <= len(there):
        raise ValueError(f"{size} people were asked for, {len(there)} have a name")
    names = sorted(there)
    order = np.random.default_rng(seed).permutation(len(names))
    return sorted(names[i] for i in order[:size])


def source(pictures: Path, there: Mapping[str, list[str]], names: Sequence[str]) -> Files:
    """All pictures of these people; the label is the place in `names`."""
    entries = [(pictures / file, i) for i, name in enumerate(names) for file in there[name]]
    return Files(entries, tuple(names))


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One result a size."""
    pictures = Path(arguments.data)
    if not pictures.is_dir():
        raise ValueError(f"--data {pictures} came, the folder of CelebA's pictures was expected")
    there = people(arguments.identities, arguments.names)
    templates = prompts.load("celeba").templates
    chosen = {size: drawn(there, size, arguments.seed) for size in arguments.sizes}
    found = []
    for size, names in chosen.items():
        task = zero_shot.Task(
            experiment="celeba_identity",
            data=arguments.data,
            dataset=f"celeba_{size}",
            model=arguments.model,
            source=aligned(source(pictures, there, names)),
            templates=prompts.checked(arguments.prompts) if arguments.prompts else templates,
            policy=arguments.policy,
            batch_size=arguments.batch_size,
            skip_limit=arguments.skip_limit,
        )
        found.append(zero_shot.run(task, arguments.out / str(size), arguments.force))
    return found


def show(found: Sequence[dict[str, Any]], out: Path) -> None:
    """A row a size, on standard output."""
    warn_embedded(found[0]["model"])
    table = Table("people", "pictures", "top-1 (%)", "95 % interval", "published", title="Table 1")
    for result in found:
        low, high = (100 * x for x in result["interval"])
        figures = ", ".join(f"{100 * row['value']:.1f}" for row in result["expected"]) or "none"
        shown = (f"{100 * result['value']:.1f}", f"{low:.1f} to {high:.1f}", figures)
        table.add_row(str(len(result["classes"])), str(result["n"]), *shown)
    print_table(table)
    print_line(f"wrote {out}")


def flags() -> common.Parser:
    """The command line."""
    made = zero_shot.parser("celeba_identity", __doc__.splitlines()[0])
    flag = made.add_argument
    flag("--data", required=True, help="the folder with 000001.jpg and on")
    flag("--identities", type=Path, required=True, help="identity_CelebA.txt: picture, number")
    flag("--names", type=Path, required=True, help="number (or picture) and name, a line each")
    flag(
        "--sizes",
        type=common.positive,
        nargs="+",
        default=SIZES,
        help="how many people to choose from",
    )
    flag("--seed", type=common.seed, default=0, help="draws the people")
    flag("--prompts", nargs="+", default=(), help="templates of your own, one slot {} each")
    return made


def main(given: Sequence[str]) -> int:
    """Run the command line; the exit code."""

    def work(arguments: argparse.Namespace) -> None:
        show(run(arguments), arguments.out)

    return common.run(flags(), work, given)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
