"""Experiments: `python -m experiments.NAME --help`.

The article's tables
  zero_shot          accuracy of class names in prompts on a labelled dataset
  retrieval          recall of captions by pictures and of pictures by captions
  linear_probe       logistic regression on frozen features
  celeba_identity    people by name, among 100 to 2,000 names (section 7)
  pets_humans        Oxford-IIIT Pets, CLIP beside people
  train              the paper's recipe for each released model
Beside them
  bench              time and memory beside PyTorch, both in turn
  supervised         the same tower trained on labels, few labels, and zero-shot
  report             one HTML page of a run or an evaluation
  annotate           docs/annotated_clip.py, the paper as a program, as a page and a notebook
  proofs.parity_table, proofs.loss_memory, proofs.plan
                     agreement with the official code; memory of the losses; what TPUs and GPUs need
  proofs.models      every model of open_clip and transformers against its library
  proofs.planted_faults
                     faults planted in PyTorch code, and whether `jaxclip doctor` names them
  proofs.none_fits   how often `jaxclip classify` marks right answers, and wrong ones, as no fit
  proofs.playground_twin
                     docs/playground/, a CLIP in the browser, against the project's towers
  recipes.make_emoji, recipes.embed_model, recipes.fashion_mnist, recipes.playground_drawings,
  recipes.example_drawings
                     embedded pictures and model, Fashion-MNIST, drawings of docs/playground/ and of
                     examples/drawings/
  recipes.make_icons 131,066 openly licensed icons with captions, to train the embedded model on
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

EARLIER_NAMES = {
    "compare_supervised": "supervised/__main__.py",
    "embed_model": "recipes/embed_model.py",
    "fashion_mnist": "recipes/fashion_mnist.py",
    "loss_memory": "proofs/loss_memory.py",
    "make_emoji": "recipes/make_emoji.py",
    "parity_table": "proofs/parity_table.py",
    "plan": "proofs/plan.py",
    "planted_faults": "proofs/planted_faults/__main__.py",
    "probe_speed": "bench/probe.py",
}


class _EarlierNames(MetaPathFinder):
    """Runs `python -m experiments.NAME` of before the sub-packages."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        file = EARLIER_NAMES.get(name.removeprefix(f"{__name__}."))
        if file is None or not name.startswith(f"{__name__}."):
            return None
        return importlib.util.spec_from_file_location(name, Path(__file__).parent / file)


sys.meta_path.append(_EarlierNames)  # type: ignore[arg-type]
