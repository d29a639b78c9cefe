"""Read an optimised program of XLA (HLO text): collectives, large arrays, what runs how often."""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4}  # the others, s64 and f64, have 8
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"

Array = tuple[str, tuple[int, ...]]  # (number format, shape)


def arrays(text: str) -> list[Array]:
    """Every array that a piece of XLA's text names."""
    found = re.findall(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]", text)
    return [(kind, tuple(int(d) for d in dims.split(",") if d)) for kind, dims in found]


def size(array: Array, trips: int = 1) -> int:
    """Bytes of an array; of a stack with one entry a trip of the loop around it, of one entry.

    Such a stack is sliced, or updated in place, where it is used.
    """
    kind, shape = array
    entries = trips if trips > 1 and shape and shape[0] == trips else 1
    return BYTES.get(kind, 8) * math.prod(shape) // entries


def collective_results(text: str) -> dict[str, dict[str, int]]:
    """{kind of collective: its number in a program, and bytes of the results on one device}.

    The body of a loop stands there once, however often it is walked: a ring's once for all stops.
    A TPU's program writes a collective anew in each kernel that runs beside it, under one channel;
    that counts once. All that jax itself writes (`shard_map`) have channel 1.
    """
    found: dict[str, dict[str, int]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
    seen = set()
    pattern = rf"= (.*?) ({COLLECTIVES})(-start)?\((?:.*?\bchannel_id=(\d+))?"
    for result, kind, asynchronous, channel in re.findall(pattern, text):
        if (kind, channel) in seen:
            continue
        if channel not in ("", "1"):
            seen.add((kind, channel))
        named = arrays(result)
        if asynchronous and kind != "all-reduce":  # (inputs, results, two numbers if it permutes)
            named = [array for array in named if array != ("u32", ())]
            named = named[len(named) // 2 :]
        found[kind]["count"] += 1
        found[kind]["bytes"] += sum(size(array) for array in named)
    return dict(found)


def logits_held(text: str, batch: int, devices: int) -> set[tuple[int, ...]]:
    """Shapes in a program that are logits of more than a block: [n, n] or [b, n]."""
    own = batch // devices
    shapes = {shape for _, shape in arrays(text)}
    return {s for s in shapes if s.count(batch) > 1 or (batch in s and own in s and own > 1)}


def allocated(report: str) -> int | None:
    """Bytes of a device's memory in XLA's own memory-usage report; None in another text."""
    found = re.search(r"^Memory Space: default .*\nTotal bytes: (\d+)", report, re.M)
    return int(found[1]) if found else None


def largest_buffers(report: str, most: int) -> list[dict[str, object]]:
    """The largest buffers of XLA's own memory-usage report, with the arrays that share them."""
    line = r"^\s*[\d.]+\w+\(\s*\d+%\);\s*([\d.]+)(B|KiB|MiB|GiB);\s*\d+;\s*\d+; (.*)$"
    unit = {"B": 2**-20, "KiB": 2**-10, "MiB": 1, "GiB": 2**10}
    rows = re.findall(line, report, re.M)[:most]
    return [{"MiB": round(float(n) * unit[u], 1), "arrays": shapes} for n, u, shapes in rows]


# What runs, and how often -------------------------------------------------------------------------


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    result: str  # the text of its shape
    op: str
    operands: tuple[str, ...]
    rest: str  # everything behind the operator


class Run(NamedTuple):
    """An instruction that is a kernel of its own, with the arrays it reads and writes."""

    instruction: Instruction
    results: list[Array]
    operands: list[list[Array]]
    times: int  # in one run of the program
    trips: int  # of the innermost loop around it

    @property
    def bytes(self) -> int:
        """Read and written in one of its runs."""
        read = sum(size(array, self.trips) for given in self.operands for array in given)
        return read + sum(size(array, self.trips) for array in self.results)


NOT_RUN = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all"}
NOT_RUN |= {"partition-id", "replica-id", "copy-start", "copy-done", "opt-barrier"}
SLICES = ("slice", "dynamic-slice")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """({computation: its instructions}, the name of the entry)."""
    found: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            current = found.setdefault(head[2], []) if head else None
            entry = head[2] if head and head[1] else entry
        elif current is not None and (match := _LINE.match(line)):
            name, result, op, rest = match.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            current.append(Instruction(name, result, op, tuple(operands), rest))
    return found, entry


def runs(text: str) -> Iterator[Run]:
    """Every kernel of a program, those in loops with the number of their trips."""
    computations, entry = parse(text)
    return _walk(computations, entry, 1, 1)


def _walk(
    computations: dict[str, list[Instruction]], name: str, times: int, trips: int
) -> Iterator[Run]:
    known: dict[str, list[Array]] = {}
    for instruction in computations.get(name, []):
        known[instruction.name] = arrays(instruction.result)
        op, rest = instruction.op, instruction.rest
        if op == "while":
            body = re.search(r"body=%?([\w.\-]+)", rest)
            count = _trip_count(computations, rest)
            yield from _walk(computations, body[1] if body else "", times * count, count)
        elif op in ("call", "conditional"):
            called = re.findall(r"(?:to_apply|branch_computations)=\{?%?([\w.\-]+)", rest)
            for other in called:
                yield from _walk(computations, other, times, trips)
        elif op == "fusion" and (library := _library_calls(computations, rest, times, trips)):
            yield from library
        elif op not in NOT_RUN:
            operands = _read(instruction, known, computations)
            yield Run(instruction, known[instruction.name], operands, times, trips)


def _read(
    instruction: Instruction,
    known: dict[str, list[Array]],
    computations: dict[str, list[Instruction]],
) -> list[list[Array]]:
    """The arrays of each operand; of one that a fusion only slices, such as a stack, the slices."""
    sliced = _sliced(instruction, computations)
    read: dict[Any, list[Array]] = {}  # an array that is read twice counts once
    for i, name in enumerate(instruction.operands):
        read[(name, i) if i in sliced else name] = sliced.get(i, known.get(name, []))
    return list(read.values())


def _sliced(
    instruction: Instruction, computations: dict[str, list[Instruction]]
) -> dict[int, list[Array]]:
    """{operand's number: its slices}, of a fusion's operands that are only sliced in it."""
    called = re.search(r"calls=%?([\w.\-]+)", instruction.rest)
    inside = computations.get(called[1], []) if instruction.op == "fusion" and called else []
    found = {}
    for parameter in (each for each in inside if each.op == "parameter"):
        users = [each for each in inside if parameter.name in each.operands]
        if users and all(
            each.op in SLICES and each.operands[0] == parameter.name for each in users
        ):
            number = int(parameter.rest.split(")")[0])
            found[number] = [array for each in users for array in arrays(each.result)]
    return found


def _library_calls(
    computations: dict[str, list[Instruction]], rest: str, times: int, trips: int
) -> list[Run]:
    """The library's kernels of a fusion that slices arrays for them; [] for any other fusion.

    XLA of jax 0.11 gives cuBLAS a layer's weights out of their stack in this way.
    """
    called = re.search(r"calls=%?([\w.\-]+)", rest)
    if '"__custom_fusion"' not in rest or not called:
        return []
    found = _walk(computations, called[1], times, trips)
    return [run for run in found if run.instruction.op == "custom-call"]


def _trip_count(computations: dict[str, list[Instruction]], rest: str) -> int:
    """Trips of a `while`: as XLA says, or the bound in its condition; 1 where neither is there."""
    said = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
    if said:
        return int(said[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    inside = computations.get(condition[1], []) if condition else []
    bounds = [re.match(r"(\d+)\)", i.rest) for i in inside if i.op == "constant"]
    return max((int(bound[1]) for bound in bounds if bound), default=1)
