"""Which icons of @iconify/json are drawn, and the captions that their names turn into.

"mdi:heart-outline" -> "heart": the set's own prefixes and suffixes, style words and numbers go.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.recipes.artwork import SKIN_TONE, Names, name_emoji, read_json, square_svg

LICENCES = {"MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-3.0", "CC0-1.0", "ISC", "OFL-1.1"}
# Whatever their licence: EmojiOne 1 and OpenMoji are share-alike, Fluent is the unseen artist.
NEVER = re.compile(r"openmoji|emojione-v1|fluent.*")
SKIP_CATEGORIES = {"Logos", "Programming"}  # trademarks
SKIP_SETS = {
    *("fxemoji", "whh", "ls"),  # words run together; the licence of fxemoji was not traced either
    *("circle-flags", "flag", "flagpack", "cif"),  # country codes are not words
    *("fa-brands", "fa6-brands", "academicons"),  # logos in other categories
    *("svg-spinners", "bpmn", "geo", "fad"),  # animations and diagrams
}
EMOJI = {"noto", "noto-v1", "twemoji", "emojione", "emojione-monotone"}  # with CLDR's names

# Style words. Those of STYLE end a name as style only; those of MAYBE_STYLE where the set has the
# name without the word, or in two other styles ("heart-bold"): "traffic-light" is a thing.
STYLE = {
    "outline", "outlined", "filled", "duotone", "twotone", "rounded", "alt", "alternate",
    "alternative", "regular", "colored", "colors", "px", "remix", "o", "rtl", "ltr",
    "multiple-variants",
}  # fmt: skip
MAYBE_STYLE = {
    "fill", "solid", "bold", "thin", "light", "line", "linear", "sharp", "round", "flat",
    "color", "colour", "duo", "broken", "stroke", "glyph", "tone", "path", "pop", "print",
    "small", "large", "big", "mini", "two", "variant", "expressive", "stipple", "inner",
}  # fmt: skip
COMMON_STYLES = ["outline", "filled", "fill", "solid", "bold", "line"]
FILLED = {"fill", "filled", "solid", "bold"}
NUMBERED = {"one", "two", "three", "four", "five", "six", "seven", "eight"}
SHAPES = {
    "square", "circle", "squared", "circled", "round", "f", "official", "alt", "app", "inc",
    "sign",
}  # fmt: skip
# Words that name a thing in drawings and a company in interface sets (whose "apple" has a bite).
COMPANIES = {
    "apple", "steam", "medium", "qq", "stripe", "flutter", "vk", "safari", "yarn", "kick",
    "edge", "delicious", "gemini", "chrome", "opera", "windows", "amazon", "tinder", "dribble",
    "k8s",
}  # fmt: skip
PICTORIAL = {"Emoji", "Thematic", "Flags / Maps"}  # categories whose words mean the thing
BRANDED = re.compile(r"^(brand|brands|logo|logos|social|social-media)-|-(logo|logotype|brand)(-|$)")
SIZE_WORD = re.compile(r"\d+(px|x\d+|dp)?")


@dataclass(frozen=True)
class Icon:
    """A drawing to make, and its caption."""

    set: str
    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class SetNames:
    """The icon names of a set, and what its names share."""

    prefix: str
    names: Collection[str]
    prefixes: Sequence[str]
    suffixes: Sequence[str]
    leading: str | None

    def in_other_styles(self, base: str) -> bool:
        """Whether the set has `base` itself, or two of its styles."""
        return base in self.names or (
            sum(f"{base}-{style}" in self.names for style in [*self.suffixes, *COMMON_STYLES]) >= 2
        )


def split_words(name: str) -> list[str]:
    """The words of an icon's name."""
    return [word for word in re.split(r"[-_\s]+", name.lower()) if word]


def leading_word(names: Sequence[str]) -> str | None:
    """A first word that most names of a set share ("cil-..."): it names the set."""
    first = Counter(words[0] for words in map(split_words, names) if words)
    word, count = first.most_common(1)[0] if first else ("", 0)
    return word if count > 0.6 * len(names) else None


def describe_names(data: dict[str, Any], names: Sequence[str]) -> SetNames:
    """What cleaning the names of an Iconify set needs."""
    parts = (filter(None, data.get(key, {})) for key in ("prefixes", "suffixes"))
    prefixes, suffixes = (sorted(part, key=len, reverse=True) for part in parts)
    return SetNames(data["prefix"], set(names), prefixes, suffixes, leading_word(names))


def clean_caption(name: str, known: SetNames) -> str:
    """The caption in an icon's name; "" where nothing with meaning is left."""
    name = name.lower()
    prefix = next((p for p in known.prefixes if name.startswith(f"{p}-")), "")
    name = name[len(prefix) + 1 :] if prefix else name
    suffix = next((s for s in known.suffixes if name.endswith(f"-{s}")), "")
    base = name.removesuffix(f"-{suffix}")
    if suffix and (suffix.split("-")[-1] not in MAYBE_STYLE or known.in_other_styles(base)):
        name = base
    if known.leading:
        name = name.removeprefix(f"{known.leading}-")
    words = split_words(name)
    while count := _style_words(words, known):
        words = words[:-count]
    if words and (numbered := re.fullmatch(r"([a-z]{3,})\d{1,2}", words[-1])):  # "eraser2"
        words[-1] = numbered[1]
    caption = " ".join(words)
    return caption if re.search(r"[a-z]{2}", caption) else ""


def _style_words(words: list[str], known: SetNames) -> int:
    """How many of the last words are style, numbers or sizes; the first word never is."""
    if len(words) < 2:
        return 0
    last = words[-1]
    if last in NUMBERED and known.prefix.startswith("icon-park"):  # "video-one"
        return 1
    if SIZE_WORD.fullmatch(last) or last in STYLE:
        return 1
    if last in MAYBE_STYLE and known.in_other_styles("-".join(words[:-1])):
        return 1
    return 2 if len(words) > 2 and words[-2:] == ["two", "tone"] else 0


def is_wanted(prefix: str, record: dict[str, Any]) -> bool:
    """Whether a set is drawn at all: its licence, its category, no test set."""
    return (
        record["license"].get("spdx") in LICENCES
        and record.get("category") not in SKIP_CATEGORIES
        and not NEVER.fullmatch(prefix)
        and prefix not in SKIP_SETS
    )


def logo_names(iconify: Path, collections: dict[str, Any], names: Names) -> set[str]:
    """Captions of the sets of logos, less those that are common words."""
    brands = set()
    for prefix, record in collections.items():
        if record.get("category") == "Logos":
            for icon in read_json(iconify / f"json/{prefix}.json")["icons"]:
                kept = (w for w in split_words(icon) if w not in ("icon", "wordmark", "logo"))
                brands.add(" ".join(kept))
    common = {
        word
        for name, keywords in names.values()
        for text in [name, *keywords]
        for word in [text, *split_words(text)]
    }
    return {brand for brand in brands if brand not in common and len(brand) > 2}


def caption_of(
    name: str, known: SetNames, category: str | None, brands: Collection[str], names: Names
) -> str:
    """The caption of an icon; "" where it is left out: a skin tone, a logo, no words."""
    if known.prefix in EMOJI:
        return "" if SKIN_TONE.search(name) else name_emoji(name, names)[0]
    caption = "" if BRANDED.search(name) else clean_caption(name, known)
    bare = " ".join(word for word in caption.split() if word not in SHAPES)
    if caption in brands or bare in brands:
        return ""
    return "" if bare in COMPANIES and category not in PICTORIAL else caption


def pick_variants(names: Sequence[str], is_coloured: bool) -> list[str]:
    """Of the icons of one caption the plainest, and one in another style.

    The icons of a coloured set differ by numbers and styles: three of them.
    """
    ordered = sorted(
        names,
        key=lambda name: (
            len(split_words(name)),
            "thin" in name or "light" in name,
            len(name),
            name,
        ),
    )
    if is_coloured:
        return ordered[:3]
    filled = [bool(FILLED & set(split_words(name))) for name in ordered]
    other = [name for name, full in zip(ordered, filled, strict=True) if full != filled[0]]
    return ordered[:1] + other[:1]


def icons_of_set(
    data: dict[str, Any], record: dict[str, Any], brands: Collection[str], names: Names
) -> Iterator[Icon]:
    """The icons of one set to draw, by caption."""
    shown = {name: icon for name, icon in data["icons"].items() if not icon.get("hidden")}
    known = describe_names(data, list(shown))
    by_caption = defaultdict(list)
    for name in shown:
        if caption := caption_of(name, known, record.get("category"), brands, names):
            by_caption[caption].append(name)
    for caption, variants in sorted(by_caption.items()):
        for name in pick_variants(variants, bool(record.get("palette"))):
            yield Icon(data["prefix"], name, caption, square_svg(data, shown[name]))


def choose_icons(iconify: Path, names: Names) -> tuple[list[Icon], dict[str, dict[str, Any]]]:
    """Icons to draw, sorted by set and caption, and {set: its credits}."""
    collections = read_json(iconify / "collections.json")
    brands = logo_names(iconify, collections, names)
    icons: list[Icon] = []
    credits = {}
    for prefix, record in sorted(collections.items()):
        if is_wanted(prefix, record):
            data = read_json(iconify / f"json/{prefix}.json")
            icons += icons_of_set(data, record, brands, names)
            credits[prefix] = credit(prefix, record)
    return icons, credits


def credit(prefix: str, record: dict[str, Any]) -> dict[str, Any]:
    """Name, author, address and licence of a set."""
    author, licence = record.get("author", {}), record["license"]
    return {
        "prefix": prefix,
        "name": record["name"],
        "author": author.get("name"),
        "url": author.get("url"),
        "licence": licence.get("spdx"),
        "licence_url": licence.get("url"),
        "category": record.get("category"),
        "version": record.get("version"),
    }
