"""The drawings of the page that trains a CLIP in the browser.

Question:  which drawings does docs/playground/ carry?
Command:   python -m experiments.recipes.playground_drawings
Result:    docs/playground/drawings.json: 96 names in six groups, five artists each, 32 pixels a
           side, red, green and blue as whole numbers, on white.

All are from the embedded emoji (NOTICE names the artists). Four artists train; the fifth, whom the
embedded split "test" holds, is only looked at.
"""

import base64
import dataclasses
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.common import run_experiment
from jaxclip.data.emoji.pictures import load_emoji

OUT = Path(__file__).parents[2] / "docs" / "playground" / "drawings.json"
SIZE = 32
MOST_KEYWORDS = 3
ARTISTS = {  # the folder of the embedded file: what NOTICE calls it; the last is never trained on
    "noto": "Noto Emoji",
    "noto-v1": "Noto Emoji, first version",
    "twemoji": "Twemoji",
    "emojione": "EmojiOne 2",
    "fluent-emoji-flat": "Fluent Emoji, flat",
}
GROUPS = {
    "Animals": (
        "cat face, dog face, rabbit face, mouse face, tiger face, monkey face, pig face, fox, "
        "koala, elephant, penguin, turtle, whale, fish, crab, lady beetle"
    ),
    "Fruit and food": (
        "red apple, green apple, lemon, tangerine, pear, peach, cherries, strawberry, "
        "watermelon, grapes, pineapple, tomato, avocado, eggplant, bread, hamburger"
    ),
    "Faces": (
        "grinning face, face with tears of joy, smiling face with heart-eyes, winking face, "
        "loudly crying face, sleeping face, nauseated face, face with medical mask, nerd face, "
        "clown face, skull, ghost, alien monster, smiling face with horns, Santa Claus, moai"
    ),
    "Travel": (
        "automobile, taxi, police car, tractor, bicycle, locomotive, tram, airplane, "
        "helicopter, rocket, speedboat, canoe, motor scooter, racing car, minibus, tent"
    ),
    "Sky and plants": (
        "rainbow, cloud, cloud with rain, star, full moon face, crescent moon, fire, droplet, "
        "umbrella, snowman, sunflower, rose, cactus, palm tree, evergreen tree, deciduous tree"
    ),
    "Things": (
        "red heart, green heart, yellow heart, soccer ball, guitar, trumpet, drum, hammer, "
        "scissors, bell, locked, telephone, camera, trophy, balloon, crown"
    ),
}
NAMES = [name for group in GROUPS.values() for name in group.split(", ")]


def shrink(images: np.ndarray) -> np.ndarray:
    """RGBA [n, 64, 64, 4] -> RGB [n, 32, 32, 3] on white, every mean rounded half up."""
    colour, opacity = images[..., :3].astype(int), images[..., 3:].astype(int)
    white = (colour * opacity + 255 * (255 - opacity) + 127) // 255  # [n, 64, 64, 3]
    n = len(white)
    fours = white.reshape(n, SIZE, 2, SIZE, 2, 3).sum(axis=(2, 4))  # [n, 32, 32, 3]
    return ((fours + 2) // 4).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Drawings:
    """pixels uint8 [names, artists, 32, 32, 3], and for every name some keywords."""

    pixels: np.ndarray
    keywords: tuple[tuple[str, ...], ...]


def load_drawings() -> Drawings:
    """The drawings of NAMES by ARTISTS from the embedded file, in that order."""
    pixels = np.zeros((len(NAMES), len(ARTISTS), SIZE, SIZE, 3), np.uint8)
    keywords: dict[str, tuple[str, ...]] = {}
    seen = set()
    for split in ("train", "test"):
        pictures = load_emoji(split)
        small = shrink(pictures.images)
        for i, (name, file) in enumerate(zip(pictures.names, pictures.files, strict=True)):
            artist = file.partition("/")[0]
            if name in NAMES:
                pixels[NAMES.index(name), list(ARTISTS).index(artist)] = small[i]
                keywords[name] = pictures.keywords[i][:MOST_KEYWORDS]
                seen.add((name, artist))
    missing = {(name, artist) for name in NAMES for artist in ARTISTS} - seen
    if missing:
        raise ValueError(f"expected a drawing of every name by every artist, got none of {missing}")
    return Drawings(pixels, tuple(keywords[name] for name in NAMES))


def as_json(drawings: Drawings) -> dict[str, Any]:
    """What the page's build reads: names, groups, artists, keywords, and the pixels, deflated."""
    ends = np.cumsum([len(group.split(", ")) for group in GROUPS.values()]).tolist()
    return {
        "names": NAMES,
        "groups": [[group, end] for group, end in zip(GROUPS, ends, strict=True)],
        "artists": list(ARTISTS.values()),
        "keywords": drawings.keywords,
        "packed": base64.b64encode(zlib.compress(drawings.pixels.tobytes(), 9)).decode(),
    }


def read_drawings(path: Path = OUT) -> Drawings:
    """The drawings as the file has them, which is faster than the embedded ones."""
    data = json.loads(path.read_text(encoding="utf-8"))
    pixels = np.frombuffer(zlib.decompress(base64.b64decode(data["packed"])), np.uint8)
    shape = (len(data["names"]), len(data["artists"]), SIZE, SIZE, 3)
    return Drawings(pixels.reshape(shape), tuple(map(tuple, data["keywords"])))


@dataclasses.dataclass
class Flags:
    """Where the drawings are written."""

    out: Path = OUT


def main(flags: Flags) -> None:
    """Write the file."""
    text = json.dumps(as_json(load_drawings()), indent=0, ensure_ascii=False) + "\n"
    flags.out.write_text(text, encoding="utf-8")
    print(f"{flags.out}: {len(text):,} characters")


if __name__ == "__main__":
    sys.exit(run_experiment(main, Flags, sys.argv[1:], "playground_drawings", __doc__ or ""))
