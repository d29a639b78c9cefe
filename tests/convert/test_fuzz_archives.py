"""Twenty-four thousand spoilt checkpoint files: each loads or is a ValueError, and nothing else.

Half are bytes changed anywhere; half are pickles changed opcode by opcode in a container that is
sound, so that they get past the checksum and the tables of the containers.
"""

from __future__ import annotations

import io
import pickletools
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.lib.peers import archives
from jaxclip.convert.archive.torch_archive import parse
from tests.support.hostile import ALLOWED, SMALL, in_legacy, in_script, in_zip

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = 4_000  # of each kind and each way of spoiling
SLOWEST = 5.0  # seconds of the processor for one file; the usual is a thousandth
BOUNDARIES = [0, 1, 6, 7, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, 1 << 63]
TREES = {
    "script": archives.module_tree(SMALL),
    "zip": archives.state_dict(SMALL),
    "legacy": archives.state_dict(SMALL, legacy=True),
}
WRAPS: dict[str, Callable[[bytes], bytes]] = {
    "script": in_script,
    "zip": in_zip,
    "legacy": in_legacy,
}


def golden(kind: str) -> bytes:
    return (GOLDEN / f"torch_{kind}.pt").read_bytes()


# Bytes --------------------------------------------------------------------------------------------


def flip(data: bytearray, other: bytes, draw: random.Random) -> bytearray:
    for _ in range(draw.choice((1, 1, 2, 8))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data


def cut(data: bytearray, other: bytes, draw: random.Random) -> bytearray:
    return data[: draw.randrange(len(data))]


def splice(data: bytearray, other: bytes, draw: random.Random) -> bytearray:
    return data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]


def overwrite(data: bytearray, other: bytes, draw: random.Random) -> bytearray:
    """A number that is just too large, or just not."""
    at, size = draw.randrange(len(data) - 8), draw.choice((1, 2, 4, 8))
    value = draw.choice(BOUNDARIES) % (1 << 8 * size)
    data[at : at + size] = value.to_bytes(size, "little")
    return data


def move(data: bytearray, other: bytes, draw: random.Random) -> bytearray:
    """A block taken out, doubled, or put somewhere else."""
    start, size = draw.randrange(len(data)), draw.randrange(1, 64)
    block = bytes(data[start : start + size])
    if draw.random() < 0.7:
        del data[start : start + size]
    if draw.random() < 0.7:
        at = draw.randrange(len(data))
        data[at:at] = block
    return data


BYTEWISE = (flip, cut, splice, overwrite, move)


def spoilt_bytes(kind: str, draw: random.Random) -> bytes:
    own = draw.choice((golden(kind), archives.MAKERS[kind](SMALL)))
    other = draw.choice([golden(name) for name in archives.KINDS])
    return bytes(draw.choice(BYTEWISE)(bytearray(own), other, draw))


# Opcodes ------------------------------------------------------------------------------------------


def opcodes(pickle: bytes) -> list[bytes]:
    """The pickle cut into its opcodes with their arguments."""
    starts = [at for _, _, at in pickletools.genops(io.BytesIO(pickle))]
    ends = [*starts[1:], len(pickle)]
    return [pickle[start:end] for start, end in zip(starts, ends, strict=True)]


def drop(codes: list[bytes], draw: random.Random) -> None:
    del codes[draw.randrange(1, len(codes))]


def double(codes: list[bytes], draw: random.Random) -> None:
    at = draw.randrange(1, len(codes))
    codes[at:at] = codes[at : at + draw.choice((1, 1, 3, 20))]


def swap(codes: list[bytes], draw: random.Random) -> None:
    a, b = draw.randrange(1, len(codes)), draw.randrange(1, len(codes))
    codes[a], codes[b] = codes[b], codes[a]


def another(codes: list[bytes], draw: random.Random) -> None:
    """Any opcode, most often one that is known, in the place of another."""
    code = draw.choice(ALLOWED) if draw.random() < 0.8 else draw.randrange(256)
    at = draw.randrange(1, len(codes))
    codes[at] = bytes([code]) + codes[at][1:]


def number(codes: list[bytes], draw: random.Random) -> None:
    """Another number where one stands: a size, stride, offset, count."""
    places = [i for i, code in enumerate(codes) if code[0] in b"JKM"]
    value = draw.choice(BOUNDARIES) * draw.choice((1, 1, 1, -1))
    if draw.random() < 0.5:
        value = draw.randrange(-2, 9)
    codes[draw.choice(places)] = archives.integer(value)


def name(codes: list[bytes], draw: random.Random) -> None:
    """Another name or text of the same pickle, or one that does harm."""
    places = [i for i, code in enumerate(codes) if code[0] in b"cX"]
    evil = [archives.named("os", "system"), archives.named("builtins", "eval"), b")", b"}", b"]"]
    into, source = draw.choice(places), draw.choice(places)
    codes[into] = draw.choice([codes[source], codes[source], *evil])


def memo(codes: list[bytes], draw: random.Random) -> None:
    """Something remembered here and used there."""
    at, to = sorted(draw.choices(range(1, len(codes)), k=2))
    codes.insert(to, b"h\x00")
    codes.insert(at, draw.choice((b"q\x00", b"r" + struct.pack("<I", 0))))


OPCODEWISE = (drop, double, swap, another, number, number, name, memo)


def spoilt_pickle(kind: str, draw: random.Random) -> bytes:
    codes = list(CODES[kind])
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        draw.choice(OPCODEWISE)(codes, draw)
    return WRAPS[kind](b"".join(codes))


CODES = {kind: opcodes(tree) for kind, tree in TREES.items()}


# The claim ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", archives.KINDS)
@pytest.mark.parametrize("spoil", [spoilt_bytes, spoilt_pickle], ids=["bytes", "opcodes"])
def test_spoilt_files_load_or_are_refused(kind: str, spoil: Callable[[str, random.Random], bytes]):
    draw = random.Random(f"{kind} {spoil.__name__}")
    outcomes: Counter[str] = Counter()
    for i in range(FILES):
        data = spoil(kind, draw)
        start = time.process_time()
        try:
            arrays = parse(data)
        except ValueError as error:
            assert "\n" not in str(error), i
            outcomes[str(error)[:24]] += 1
            continue
        finally:
            assert time.process_time() - start < SLOWEST, i
        outcomes["loaded"] += 1
        for array in arrays.values():  # all bytes of it are there to be read
            assert not array.flags.writeable, i
            assert len(array.tobytes()) <= len(data), i
    # Otherwise the files are all alike, and the test says little.
    assert outcomes["loaded"] > FILES / 100
    assert len(outcomes) >= 12


def test_the_seeds_are_sound():
    for kind in archives.KINDS:
        assert archives.same(parse(WRAPS[kind](b"".join(CODES[kind]))), SMALL)
        assert archives.same(parse(golden(kind)), archives.sample())
