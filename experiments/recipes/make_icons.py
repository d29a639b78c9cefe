"""How the openly licensed icons with captions were made that the embedded model is trained on.

Question:  which drawings beyond emoji can train a small CLIP, under permissive licences only?
Command:   pip install -e '.[recipes]' && python -m experiments.recipes.make_icons    (needs npm)
Result:    icons.zip, 37 MB: 131,066 drawings of 64 x 64 pixels by 172 sets, 52,023 captions.
           25 minutes on two shared CPU cores, two of them for what follows drawing.

Steps: fetch @iconify/json and CLDR's English annotations with npm; turn icon names into captions,
one drawing of each caption and set or a few (icon_captions.py); draw them, leave out near copies
(icon_drawings.py); order them, pack them (icon_file.py). `--credits` writes
licenses/icon-credits.md.

Every order is sorted, nothing is random, dates are fixed: resvg-py 0.5.0, libwebp 1.6.0 (Pillow
12.0 to 13.0) and zlib 1.2.13 give SHA256. Pillow 11 packs the same pixels in other bytes.
"""

import dataclasses
import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

from PIL import features

from experiments.lib.common import run_experiment
from experiments.recipes.artwork import CLDR, cldr_names, fetch
from experiments.recipes.icon_captions import choose_icons
from experiments.recipes.icon_drawings import BLACK, COLOUR, draw_icons, thin_out
from experiments.recipes.icon_file import (
    ICONIFY,
    count_pictures,
    credits_page,
    usefulness,
    write_icons,
)
from jaxclip.checkpoint import replacing
from jaxclip.cli.shared import stderr
from jaxclip.cli.usage import Positive
from jaxclip.files import require_writable

SHA256 = "9296f0cded316ad113a6812fa792b4006082710ab5012d97296c97d5c5e46174"


@dataclasses.dataclass(frozen=True)
class Flags:
    out: Path = Path("icons.zip")
    """the archive"""
    work: Path = Path("runs/icons")
    """downloads and drawings, about 5 GB; an interrupted run continues from them"""
    workers: Positive = 2
    """processes that draw"""
    credits: Path | None = None
    """also write the credits as a Markdown page"""


def make(flags: Flags) -> None:
    """Fetch, draw, thin, pack."""
    import resvg_py  # noqa: F401  (one line where it is missing, before anything is fetched)

    require_writable(flags.out)
    names = cldr_names(fetch(*CLDR, flags.work))
    icons, credits = choose_icons(fetch(*ICONIFY, flags.work), names)
    pictures, kinds = draw_icons(icons, flags.workers, flags.work / "drawings")
    stay = thin_out(icons, pictures, kinds)
    black = [i for i in stay if kinds[i] == BLACK]
    ranks = usefulness(black, icons, names)
    order = [i for i in stay if kinds[i] == COLOUR] + black
    chosen = [icons[i] for i in order]
    counted = count_pictures(chosen, credits)
    columns = (
        [pictures[i] for i in order],
        [int(kinds[i]) for i in order],
        [ranks.get(i, 0) for i in order],
    )
    write_icons(flags.out, chosen, *columns, names, counted)
    if flags.credits:
        with replacing(flags.credits) as temporary:
            temporary.write_text(credits_page(counted), encoding="utf-8")
    print(
        f"{flags.out}: {len(order)} of {len(icons)} drawings, {len(black)} of them black, "
        f"{len({icon.caption for icon in chosen})} captions, {len(counted)} sets"
    )
    compare_digest(flags.out)


def compare_digest(out: Path) -> None:
    """Print one line where the bytes are not those that the released versions give."""
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    if digest != SHA256:
        versions = f"resvg-py {version('resvg-py')}, libwebp {features.version('webp')}"
        stderr.print(f"{out}: expected SHA-256 {SHA256}, got {digest} ({versions})")


if __name__ == "__main__":
    raise SystemExit(run_experiment(make, Flags, sys.argv[1:], "make_icons", __doc__))
