"""The command that mixes two checkpoints: interpolate."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxclip.cli.shared import UsageError, print_line
from jaxclip.config import ResNetConfig
from jaxclip.files import require_writable
from jaxclip.model_tokenizer import copy_beside


def interpolate(
    before: Annotated[str, tyro.conf.Positional],
    after: Annotated[str, tyro.conf.Positional],
    out: Path,
    share: float = 0.5,
    force: bool = False,
) -> int:
    """Mix the weights of a model before and after fine-tuning (WiSE-FT, arXiv 2109.01903).

    What fine-tuning has lost elsewhere often comes back while most of what it has won stays. A
    ResNet's BatchNorm statistics are mixed like the weights; the mixture's own need pictures.

    Args:
        before: The model that fine-tuning began with: whatever jaxclip loads.
        after: The fine-tuned model, of the same shape.
        out: The .safetensors file to write.
        share: 0 is all of the first, 1 all of the second.
        force: Overwrite what is there.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"--share: expected a number from 0 to 1, got {share}")
    if out.suffix != ".safetensors":
        raise UsageError(f"--out: expected a file ending in .safetensors, got {out}")
    if out.is_dir():
        raise UsageError(f"--out: expected the name of a file, got a folder, {out}")
    if out.exists() and not force:
        raise UsageError(f"{out} is there already; add --force or another --out")
    require_writable(out)
    from jaxclip import checkpoint
    from jaxclip.convert.given import Given
    from jaxclip.convert.loading import load_with_files
    from jaxclip.hub.find import find

    given = Given(None, None)
    (one, files), (other, more) = (load_with_files(find(n), given) for n in (before, after))
    if out.exists() and any(out.samefile(file) for file in (*files, *more)):
        raise UsageError(f"--out: expected another file than those that are mixed, got {out}")
    if one.config != other.config:
        raise ValueError(f"{before} and {after} are models of different shapes; they do not mix")
    from jaxclip.training.finetune import interpolate as mixed  # jax, which takes a second

    flat = mixed(one.flat, other.flat, share)
    notes = {"made_by": "jaxclip interpolate", "before": before, "after": after, "share": share}
    if isinstance(one.config.vision, ResNetConfig):
        print(
            "jaxclip: BatchNorm's statistics are mixed like the weights, as nothing is known of "
            "the mixture's own; evaluate it beside both",
            file=sys.stderr,
        )
    copy_beside(one.config.text, out.parent, force=force)
    checkpoint.save(out, flat, one.config, notes)
    print_line(f"wrote {out}: {1 - share:g} of {before}, {share:g} of {after}")
    return 0
