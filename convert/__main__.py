"""python -m jaxclip.convert SOURCE TARGET: from any checkpoint to one file of ours, and back."""

import argparse
import sys
from typing import get_args

from jaxclip.config import Activation
from jaxclip.terminal import printable, run_program

from .conversion import LayoutName, convert


def main(arguments: list[str] | None = None) -> int:
    """0 when the target is written, 1 when it failed (one line on stderr says why), 2 for usage."""
    parser = argparse.ArgumentParser("python -m jaxclip.convert", description=__doc__)
    parser.add_argument("source", help="a file or folder in any layout; the layout is recognised")
    parser.add_argument("target", help="file to write; a folder for the layout huggingface")
    parser.add_argument("--layout", choices=get_args(LayoutName), default="jaxclip")
    parser.add_argument(
        "--activation", choices=get_args(Activation), help="where the source does not say it"
    )
    parser.add_argument(
        "--heads",
        type=int,
        nargs=2,
        metavar=("IMAGE", "TEXT"),
        help="attention heads of both towers, where the source does not say them",
    )
    parser.add_argument("--image-size", type=int, help="resize the positional embedding for it")
    parser.add_argument("--force", action="store_true", help="overwrite the target")
    options = parser.parse_args(arguments)

    def work() -> int:
        config = convert(
            options.source,
            options.target,
            options.layout,
            activation=options.activation,
            heads=options.heads,
            image_size=options.image_size,
            force=options.force,
        )
        print(printable(f"{options.target}: {options.layout}, {config.to_json()}"))
        return 0

    return run_program("jaxclip.convert", work)


if __name__ == "__main__":
    sys.exit(main())
