"""CelebA identities by name: the article's Table 1, 100, 1,000 and 2,000 people to choose from.

Question:  how often is a person's own name the one that fits best?
Command:   python -m experiments.celeba_identity --data img_align_celeba \
               --identities identity_CelebA.txt --names names.txt --model ViT-L/14 --out runs/celeba
Result:    one folder a size in --out, each as experiments.zero_shot writes it.

identity_CelebA.txt has "000001.jpg 2880" a line, as the authors give it out on request. The names
are in a second file, either "2880 Some_Body" or "000001.jpg Some_Body" a line (so
list_identity_celeba.txt serves as it is). Which people and which 8,000 pictures Table 1 took is not
published: here people with a name are drawn by --seed, the smaller sets being parts of the larger,
and every picture of theirs counts.
"""

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.lib import common
from experiments.lib.flags import ModelFlags
from jaxclip.cli.shared import print_line, print_table, warn_embedded
from jaxclip.cli.usage import Positive, Seed
from jaxclip.data.classes import align_labels
from jaxclip.data.labelled import LabelledFiles
from jaxclip.evaluation import prompts
from jaxclip.evaluation.protocol import ZeroShot, run_zero_shot
from jaxclip.files import read_text, split_lines
from jaxclip.images.open import is_picture

SIZES = (100, 1000, 2000)


def read_pairs(path: Path) -> dict[str, str]:
    """{first word: the rest} of every line of a text file that has both."""
    lines = (line.split(maxsplit=1) for line in split_lines(read_text(path)))
    return {line[0]: line[1].strip() for line in lines if len(line) == 2}


def find_people(identities: Path, names: Path) -> dict[str, list[str]]:
    """{name: file names of the pictures} of everybody with a name, sorted by name.

    ValueError when nobody has one.
    """
    who = {f: i for f, i in read_pairs(identities).items() if is_picture(f)}
    named = read_pairs(names)
    by_picture = any(is_picture(key) for key in named)
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted(who):
        name = named.get(file if by_picture else who[file])
        if name is not None:
            found[name.replace("_", " ")].append(file)
    if not found:
        raise ValueError(f"{names} names nobody of {identities}; see --help for the two layouts")
    return dict(sorted(found.items()))


def draw_people(people: Mapping[str, list[str]], size: int, seed: int) -> list[str]:
    """`size` names by a seed, whose smaller sets are parts of its larger ones."""
    if not 2 <= size <= len(people):
        raise ValueError(f"--sizes: expected 2 to {len(people)} people with a name, got {size}")
    names = sorted(people)
    order = np.random.default_rng(seed).permutation(len(names))
    return sorted(names[i] for i in order[:size])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(ModelFlags):
    """The flags of this experiment.

    Args:
        data: The folder with 000001.jpg and so on.
        identities: identity_CelebA.txt: picture and number, a line each.
        names: Number (or picture) and name, a line each.
        sizes: How many people to choose from.
        seed: Draws the people.
        prompts: Your own templates, one slot {} each.
    """

    data: Path
    identities: Path
    names: Path
    sizes: tuple[Positive, ...] = SIZES
    seed: Seed = 0
    prompts: tuple[str, ...] = ()

    def task(self, people: Mapping[str, list[str]], names: Sequence[str]) -> ZeroShot:
        """All pictures of these people, each name a class."""
        pictures = [(file, i) for i, name in enumerate(names) for file in people[name]]
        entries = [(self.data / file, i) for file, i in pictures]
        dataset = f"celeba_{len(names)}"
        return ZeroShot(
            experiment="celeba_identity",
            data=str(self.data),
            dataset=dataset,
            source=align_labels(LabelledFiles(entries, tuple(names))),
            templates=prompts.require_slots(self.prompts or prompts.load("celeba").templates),
            expected=common.published(dataset, self.model, "top1"),
        )


def run(flags: Flags) -> list[dict[str, Any]]:
    """One result a size."""
    if not flags.data.is_dir():
        raise ValueError(f"--data: expected the folder of CelebA's pictures, got {flags.data}")
    people = find_people(flags.identities, flags.names)
    tasks = [flags.task(people, draw_people(people, n, flags.seed)) for n in flags.sizes]
    setup = flags.setup()
    return [
        run_zero_shot(task, dataclasses.replace(setup, out=flags.out / str(len(task.source.names))))
        for task in tasks
    ]


def show(results: Sequence[dict[str, Any]], out: Path) -> None:
    """Print Table 1, a row a size."""
    warn_embedded(results[0]["model"])
    table = Table("people", "pictures", "top-1 (%)", "95 % interval", "published", title="Table 1")
    for result in results:
        low, high = (100 * x for x in result["interval"])
        figures = ", ".join(f"{100 * row['value']:.1f}" for row in result["expected"]) or "none"
        numbers = (f"{100 * result['value']:.1f}", f"{low:.1f} to {high:.1f}", figures)
        table.add_row(str(len(result["classes"])), str(result["n"]), *numbers)
    print_table(table)
    print_line(f"wrote {out}")


def work(flags: Flags) -> None:
    """Run and show."""
    show(run(flags), flags.out)


def main(given: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    return common.run_experiment(work, Flags, given, "celeba_identity", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
