"""Text to token ids and back, as the released tokenizer does it: cleaning, then byte pairs.

Ids: 256 single bytes, the same 256 at the end of a word, one id a merge, the start and end mark.
`data_files/bpe_merges.txt.gz` holds the merges, one a line ("i n": left, space, right), best first.
They are lines 2 to 48,895 of `bpe_simple_vocab_16e6.txt.gz` of OpenAI's CLIP (MIT licence, sha256
924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a); the rest of it is never used.

Annotated: chapter 1, "Bytes to tokens".
"""

import gzip
import html
import sys
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

VOCAB_SIZE = 49_408
START_OF_TEXT = VOCAB_SIZE - 2
END_OF_TEXT = VOCAB_SIZE - 1
CONTEXT_LENGTH = (
    77  # section 2.4: the text is bracketed by the marks and capped at 76 (77 with them)
)

_MERGES = Path(__file__).with_name("data_files") / "bpe_merges.txt.gz"
_SPECIALS = {"<|startoftext|>": START_OF_TEXT, "<|endoftext|>": END_OF_TEXT}
_END_OF_WORD = "</w>"
LONGEST = 1_000_000  # characters of a text; ftfy repairs a longer one in pieces of this length
_DEEPEST = 8  # levels of HTML escapes ("&amp;amp;lt;" has three) of a text that is not short
_SHORT = 5_000  # characters: ftfy goes over a text once a level, which costs little for so few
_REMEMBERED = 64  # characters of the longest chunk whose ids are kept for the next time
_PIECE = 4_096  # bytes of a word that are merged at once
_SEAM = 8  # ids on each side of a seam between pieces that are merged anew, at first
_SETTLED = 256  # ids from the seam on which no later piece changes any more
_GONE = -1  # in place of an id that was joined to the one before it

# The released split: marks, English contractions, runs of letters, single digits, runs of the rest.
_SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
    r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
# What cleaning can only change in its white space: printable ASCII without "&" (an HTML entity may
# start there), tab, line feed and carriage return. ftfy removes the other control characters.
_PLAIN = r"[\t\n\r -%'-~]*+"


class _Tables(NamedTuple):
    byte_ids: list[int]  # byte -> id; 256 more at the end of a word
    merges: dict[tuple[int, int], int]  # two neighbouring ids -> the id that replaces them
    pieces: list[bytes]  # id -> bytes, with "</w>" at the end of a word


class _Patterns(NamedTuple):
    split: Any
    plain: Any
    white_space: Any
    long_number: Any


def _byte_letters() -> dict[str, int]:
    """The letter that spells each byte in the merges, in the order of the ids.

    Visible Latin-1 characters spell themselves and come first; the others, which could not be seen
    in a text file, follow as the characters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    spelled = {chr(byte): byte for byte in visible}
    return spelled | {chr(256 + index): byte for index, byte in enumerate(hidden)}


def spelled() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """({token: id} in the merges' letters, the pairs that are merged, best first)."""
    letters = _byte_letters()
    tokens = [*letters, *(letter + _END_OF_WORD for letter in letters)]
    lines = gzip.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines()
    pairs = [(left, right) for left, right in (line.split(" ") for line in lines)]
    tokens += [left + right for left, right in pairs]
    return {token: number for number, token in enumerate([*tokens, *_SPECIALS])}, pairs


@cache
def _tables() -> _Tables:
    letters, (ids, pairs) = _byte_letters(), spelled()
    pieces = [bytes([byte]) for byte in letters.values()]
    pieces += [piece + _END_OF_WORD.encode() for piece in pieces]
    merges = {}
    for left, right in pairs:
        pair = ids[left], ids[right]
        merges[pair] = len(pieces)
        pieces.append(pieces[pair[0]] + pieces[pair[1]])
    pieces += [mark.encode() for mark in _SPECIALS]
    by_byte = {byte: number for number, byte in enumerate(letters.values())}
    byte_ids = [by_byte[byte] for byte in range(256)]
    return _Tables([*byte_ids, *(256 + number for number in byte_ids)], merges, pieces)


@cache
def _patterns() -> _Patterns:
    import regex  # here: loaded at first use

    return _Patterns(
        split=regex.compile(_SPLIT, regex.IGNORECASE),
        plain=regex.compile(_PLAIN),
        white_space=regex.compile(r"\s+"),
        long_number=regex.compile(r"(?<=&#)[0-9]{9,}"),
    )


def _clean(text: str) -> str:
    """Repair the text, undo HTML escapes, collapse white space to single spaces, lower the case."""
    patterns = _patterns()
    if patterns.plain.fullmatch(text):
        return " ".join(text.split()).lower()
    return str(patterns.white_space.sub(" ", repair(text))).strip().lower()


def repair(text: str) -> str:
    """The text with its encoding repaired and HTML escapes undone, without white space around it.

    Source: clip/simple_tokenizer.py: basic_clean.
    """
    import ftfy  # here: plain text does not need it, and it takes time to load

    if len(text) > _SHORT:
        _check_depth(text)
    return _unescape(_unescape(ftfy.fix_text(text))).strip()  # twice: "&amp;amp;"


def _check_depth(text: str) -> None:
    """Refuse nested HTML escapes on which ftfy would spend the square of the text's length.

    It unescapes one level, repairs everything, and starts again until nothing changes.
    """
    import ftfy

    bracket = text.find("<")  # from the line of the first one on ftfy leaves escapes alone
    if bracket >= 0:
        text = text[: text.rfind("\n", 0, bracket) + 1]
    for _ in range(_DEEPEST + 1):
        before = text
        text = ftfy.fixes.unescape_html(ftfy.fix_text(text, unescape_html=False))
        if text == before:
            return
    raise ValueError(f"expected HTML escapes of at most {_DEEPEST} levels, got more; unescape them")


def _unescape(text: str) -> str:
    """`html.unescape`, also of numbers that have more digits than `int` takes."""
    shorter = _patterns().long_number.sub(lambda found: found[0].lstrip("0")[:9] or "0", text)
    return html.unescape(shorter)


def _merge(word: bytes, ends: bool = True) -> list[int]:
    """Byte-pair encoding of a word: join the pair of the best (earliest) merge until none is left.

    `ends`: the last byte is the end of a word.

    A heap holds (merged id, index) of every pair that can be joined, so that time is not quadratic
    in the length. No merge makes a better one possible: a merge's parts always have smaller ids.
    """
    byte_ids, merges, _ = _tables()
    ids = [byte_ids[byte] for byte in word[:-1]]
    ids.append(byte_ids[256 + word[-1] if ends else word[-1]])
    ids.append(_GONE)  # a sentinel after the end and, as ids[-1], before the start
    after = [*range(1, len(ids)), 0]  # the places of the neighbours that are left
    before = list(range(-1, len(ids) - 1))
    heap = [(merges[pair], place) for place, pair in enumerate(pairwise(ids)) if pair in merges]
    heapify(heap)
    while heap:
        merged, left = heappop(heap)
        right = after[left]
        if merges.get((ids[left], ids[right])) != merged:
            continue  # one of the two has been joined to another in the meantime
        ids[left], ids[right] = merged, _GONE
        after[left] = after[right]
        before[after[right]] = left
        for start in (before[left], left):
            pair = ids[start], ids[after[start]]
            if pair in merges:
                heappush(heap, (merges[pair], start))
    return [token for token in ids if token != _GONE]


def _merge_long(word: bytes, enough: int) -> list[int]:
    """`_merge` piece by piece, in linear time and memory, until `enough` ids are final."""
    ids: list[int] = []
    for start in range(0, len(word), _PIECE):
        ends = start + _PIECE >= len(word)
        _append(ids, _merge(word[start : start + _PIECE], ends), ends)
        if len(ids) > enough + _SETTLED:
            break
    return ids


def _append(ids: list[int], more: list[int], ends: bool) -> None:
    """Append `more` to `ids`, so that the result is the encoding of the bytes of both.

    A sequence of ids is the encoding of its bytes if each pair of neighbours is the encoding of
    its own: the first merge across a border would happen without the other ids too. So only a few
    ids on both sides of the seam are merged anew, enough that the outermost of them do not change.
    """
    pieces = _tables().pieces
    reach = _SEAM if ids else 0
    while reach:
        left, right = ids[-reach:], more[:reach]
        at_start, at_end = len(left) == len(ids), len(right) == len(more)
        seam = b"".join(pieces[token] for token in left + right)
        marked = ends and at_end
        merged = _merge(seam.removesuffix(_END_OF_WORD.encode()) if marked else seam, marked)
        if (at_start or merged[0] == left[0]) and (at_end or merged[-1] == right[-1]):
            ids[-reach:] = merged
            break
        reach *= 2
    ids += more[reach:]


@cache
def _whole_words() -> dict[str, int]:
    """{word: its id} of the words that are one token, so that they need no merges."""
    _, merges, pieces = _tables()
    ends = _END_OF_WORD.encode()
    made = ((number, pieces[number]) for number in (*range(256, 512), *merges.values()))
    whole = ((number, piece[: -len(ends)]) for number, piece in made if piece.endswith(ends))
    return {piece.decode(): number for number, piece in whole if _is_text(piece)}


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False  # a part of a character
    return True


def _ids(chunk: str, enough: int) -> list[int]:
    """The ids of a piece of clean text without white space, or at least the first `enough`."""
    whole = _whole_words()
    if chunk in whole and chunk.isalpha():  # letters alone: one word to the split as well
        return [whole[chunk]]
    ids: list[int] = []
    for word in _patterns().split.findall(chunk):
        if word in _SPECIALS:
            ids.append(_SPECIALS[word])
        elif word in whole:
            ids.append(whole[word])
        elif len(word) <= _REMEMBERED:
            ids.extend(_merge(word.encode("utf-8")))
        else:
            ids.extend(_merge_long(word.encode("utf-8"), enough - len(ids)))
    return ids


@lru_cache(maxsize=1 << 16)
def _chunk_ids(chunk: str) -> tuple[int, ...]:
    """`_ids` of a short chunk, cached."""
    return tuple(_ids(chunk, sys.maxsize))


def _encode(text: str, enough: int = sys.maxsize) -> list[int]:
    """The ids of a text, or at least the first `enough` of them."""
    ids: list[int] = []
    # No alternative of the split reaches over white space, so it may be done chunk by chunk.
    for chunk in _clean(text).split(" "):
        if len(chunk) <= _REMEMBERED:
            ids.extend(_chunk_ids(chunk))
        elif len(ids) < enough:
            ids.extend(_ids(chunk, enough - len(ids)))
    return ids


def encode(text: str) -> list[int]:
    """The ids of one text, without the start and end marks.

    As in the released tokenizer, a mark spelled out in the text ("<|endoftext|>") becomes the id of
    that mark: it ends a caption early.

    Args:
        text: any text; empty text gives an empty list.

    Returns:
        Ids, each in `[0, VOCAB_SIZE)`.

    Raises:
        ValueError: `text` is not a str, has more than `LONGEST` characters, or HTML escapes that
            are nested without end.

    >>> encode("a photo of a cat")
    [320, 1125, 539, 320, 2368]

    Source: clip/simple_tokenizer.py: SimpleTokenizer.encode.
    """
    if not isinstance(text, str):
        raise ValueError(f"text: expected a str, got {type(text).__name__}")
    if len(text) > LONGEST:
        raise ValueError(f"expected at most {LONGEST:,} characters, got {len(text):,}; cut it")
    return _encode(text)


def as_list(texts: str | Sequence[str]) -> Sequence[str]:
    """One text or several as a sequence of texts; ValueError for anything else."""
    if isinstance(texts, np.ndarray):
        texts = texts.tolist()
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, (list, tuple)):
        kind = type(texts).__name__
        raise ValueError(f"texts: expected a str or a list of str, got {kind}; try list(texts)")
    return texts


def _abbreviate(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _row(text: str, length: int, truncate: bool) -> list[int]:
    """The ids of a text with both marks, `length` at most; ValueError where it has more."""
    if not truncate:
        ids = [START_OF_TEXT, *encode(text), END_OF_TEXT]
        if len(ids) > length:
            raise ValueError(
                f"expected at most {length} tokens with the two marks, got {len(ids)}; shorten it "
                "or pass truncate=True"
            )
        return ids
    room = length - 2
    ids = _encode(text[:LONGEST], room)
    if len(text) > LONGEST and len(ids) < room:
        raise ValueError(
            f"expected {room} tokens in its first {LONGEST:,} characters, got {len(ids)}"
        )
    return [START_OF_TEXT, *ids[:room], END_OF_TEXT]


def tokenize(
    texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False
) -> np.ndarray:
    """The rows of ids that the text tower reads, one a text.

    A row is the start mark, the text, the end mark, then zeros. (0 is also the id of "!": the end
    mark shows where a row ends.) An empty text is the marks alone; an empty list gives `[0, l]`.

    Args:
        texts: one text, or a list, tuple or array `[n]` of texts.
        context_length: l, the length of a row, 2 or more.
        truncate: cut a text that is too long, so that the last id of its row is the end mark.

    Returns:
        `[n, l]` int32; one text gives `[1, l]`.

    Raises:
        ValueError: a text is too long and `truncate` is False, or an argument is of the wrong kind.

    >>> tokenize("Hello World!", context_length=6)
    array([[49406,  3306,  1002,   256, 49407,     0]], dtype=int32)

    Source: clip/clip.py: tokenize.
    """
    if isinstance(context_length, bool) or not isinstance(context_length, (int, np.integer)):
        raise ValueError(f"context_length: expected a whole number, got {context_length!r}")
    if context_length < 2:
        raise ValueError(
            f"context_length: expected 2 or more, for the two marks, got {context_length}"
        )
    rows = as_list(texts)
    tokens = np.zeros((len(rows), context_length), np.int32)  # [n, l]
    for number, text in enumerate(rows):
        if not isinstance(text, str):
            raise ValueError(f"texts[{number}]: expected a str, got {type(text).__name__}")
        try:
            ids = _row(text, context_length, truncate)
        except ValueError as error:
            raise ValueError(f"texts[{number}] ({_abbreviate(text)}): {error}") from None
        tokens[number, : len(ids)] = ids
    return tokens


def check_vocabulary(tokens: Any, vocab_size: int) -> None:
    """ValueError for token ids outside the vocabulary of a text tower.

    JAX would clamp such an id to the last row, NumPy count a negative one from the end: a wrong
    answer without an error. Pooling at the largest id of a row would be wrong as well.

    Args:
        tokens: ids of any shape, concrete whole numbers.
        vocab_size: rows of the tower's token embedding.

    Raises:
        ValueError: an id is negative or beyond the vocabulary; names both.

    >>> check_vocabulary(tokenize("a cat"), 1000)
    Traceback (most recent call last):
    ValueError: token id 49406: expected an id from 0 to 999, as the vocabulary of the model is \
1000 (that of CLIP's tokenizer: 49408); use the ids of the tokenizer that the model was trained with
    """
    ids = np.asarray(tokens)
    if ids.size == 0 or (ids.min() >= 0 and ids.max() < vocab_size):
        return
    first = int(ids[(ids < 0) | (ids >= vocab_size)][0])
    raise ValueError(
        f"token id {first}: expected an id from 0 to {vocab_size - 1}, as the vocabulary of the "
        f"model is {vocab_size} (that of CLIP's tokenizer: {VOCAB_SIZE}); use the ids of the "
        "tokenizer that the model was trained with"
    )


def decode(ids: Iterable[int]) -> str:
    """The text of ids: lower case, a space after each word, marks spelled out.

    Args:
        ids: ids in any number, for instance a row `[l]` of `tokenize` up to its end mark.

    Returns:
        The text; bytes that are not UTF-8 (half a character) become U+FFFD.

    Raises:
        ValueError: an id is not a whole number in `[0, VOCAB_SIZE)`.

    >>> decode(encode("Hello World!"))
    'hello world ! '

    Source: clip/simple_tokenizer.py: SimpleTokenizer.decode.
    """
    pieces = _tables().pieces
    joined = []
    for position, token in enumerate(ids):
        if not isinstance(token, (int, np.integer)) or not 0 <= token < VOCAB_SIZE:
            wanted = f"expected a whole number from 0 to {VOCAB_SIZE - 1}"
            raise ValueError(f"ids[{position}]: {wanted}, got {token!r}")
        joined.append(pieces[token])
    return b"".join(joined).decode("utf-8", errors="replace").replace(_END_OF_WORD, " ")
