"""The pickles inside PyTorch's files, read by an interpreter that can only describe.

Python's unpickler calls what a file names. A list of allowed names does not cure that: a file may
still set attributes on an allowed function, ask for a memo of 2**32 places, or nest dicts until the
stack is gone. Here the 32 opcodes that PyTorch writes in protocol 2, and the five that take the
place of some of them from protocol 4 on, build tuples, lists, dicts and the descriptions of
`inert`. Nothing is imported or called, only texts and small integers are hashed, no step recurses,
and every step takes memory in proportion to the bytes it was read from.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from .inert import (
    Global,
    Object,
    Storage,
    check_name,
    describe_call,
    describe_storage,
    is_int,
    refuse,
    short_repr,
)

LARGEST = 16 << 20  # bytes of one pickle; that of the largest released model has 160 kB
MOST_STEPS = 1_000_000  # that of the largest released model takes 50,000
_LONGEST_NAME = 256  # bytes of one line of a GLOBAL
PROTOCOLS = (2, 3, 4, 5)  # `torch.save(..., pickle_protocol=)`; 2 unless it is given
_FIRST_OPCODES = b"(c}]FGIJKLMNSTUVX"  # with which a pickle of protocol 0 or 1 begins


class Pickle(NamedTuple):
    value: Any
    storages: dict[str, Storage]  # all that the pickle mentions, by key
    end: int  # position after the last byte


_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False}
_EMPTY: dict[int, Callable[[], Any]] = {ord("}"): dict, ord("]"): list, ord(")"): tuple}
_NUMBERS = {ord("J"): "<i", ord("K"): "<B", ord("M"): "<H", ord("G"): ">d"}
_PUT = {ord("q"): "<B", ord("r"): "<I"}
_GET = {ord("h"): "<B", ord("j"): "<I"}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_STOP = ord(".")
# Opcodes of protocols 3 to 5 that no state dict of tensors needs: refused by name.
_OTHERS = {
    ord("B"): "bytes",
    ord("C"): "bytes",
    0x8E: "bytes",
    0x8F: "a set",
    0x90: "a set",
    0x91: "a frozen set",
    0x92: "an object with named arguments",
    0x96: "an array of bytes",
    0x97: "a buffer outside the file",
    0x98: "a buffer outside the file",
}


class _Machine:
    """One run over one pickle."""

    def __init__(self, data: memoryview, at: int, is_archive: bool) -> None:
        self.data = data[: at + LARGEST]
        self.at = at
        self.is_archive = is_archive
        self.frame_end = at
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each MARK
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        mark, self.protocol = self.take(2)
        if mark in _FIRST_OPCODES:
            raise ValueError(
                "expected a pickle of protocol 2 to 5, got one of protocol 0 or 1; save it anew "
                "with torch.save, whose protocol is 2 unless another is given"
            )
        if mark != 0x80 or self.protocol not in PROTOCOLS:
            refuse(f"expected a pickle of protocol 2 to 5 at byte {at}, got another")
        self.actions = _ACTIONS if self.protocol < 4 else _ACTIONS | _ACTIONS_4

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            refuse(f"a pickle ends in its middle, or is larger than {LARGEST >> 20} MiB")
        return self.data[start : self.at]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """The next bytes to a line feed, as ASCII."""
        line = bytes(self.data[self.at : self.at + _LONGEST_NAME])
        size = line.find(b"\n")
        if size < 0 or not line[:size].isascii():
            refuse(
                f"expected a name of at most {_LONGEST_NAME} ASCII letters in a pickle, got another"
            )
        self.at += size + 1
        return line[:size].decode("ascii")

    def pop(self, count: int) -> list[Any]:
        """The top `count` values, lowest first, taken off the stack."""
        if len(self.stack) < count:
            refuse("a pickle takes more from its stack than it put there")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def top(self) -> Any:
        if not self.stack:
            refuse("a pickle uses its stack before it put something there")
        return self.stack[-1]

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def above_mark(self) -> list[Any]:
        if not self.below:
            refuse("a pickle looks for a mark that it did not set")
        values, self.stack = self.stack, self.below.pop()
        return values

    def end_tuple(self) -> None:
        values = self.above_mark()  # first: it changes the stack
        self.stack.append(tuple(values))

    def frame(self) -> None:
        """A frame: how many bytes a reader may fetch at once. Only its bounds are checked."""
        size = self.number("<Q")
        if self.at < self.frame_end or size > len(self.data) - self.at:
            refuse("a frame of a pickle lies in another one, or reaches past the end")
        self.frame_end = self.at + size

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.top()

    def text(self, size: str = "<I") -> None:
        try:
            self.stack.append(str(self.take(self.number(size)), "utf-8"))
        except UnicodeDecodeError:
            refuse("a text in a pickle is not UTF-8")

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number("<B")), "little", signed=True))

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            refuse(f"a pickle appends to {short_repr(target)}")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) not in (dict, OrderedDict) or len(values) % 2:
            refuse(f"a pickle sets items of {short_repr(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Other integers could be chosen to have equal hashes; a deep tuple's hash recurses.
            if type(key) is not str and not (is_int(key) and 0 <= key < 1 << 31):
                refuse(
                    f"expected a text or a small integer as key of a dict, got {short_repr(key)}"
                )
            if key in target:
                refuse(f"a dict has the key {short_repr(key)} twice")
            target[key] = value

    def name(self) -> None:
        self.push_name(Global(self.line(), self.line()))

    def name_from_stack(self) -> None:
        parts = self.pop(2)
        if not all(type(part) is str and len(part) <= _LONGEST_NAME for part in parts):
            refuse("a pickle makes a name of something that is no short text")
        self.push_name(Global(*parts))

    def push_name(self, found: Global) -> None:
        check_name(found, self.is_archive)
        self.stack.append(found)

    def reduce(self) -> None:
        """Replace a call by a description; nothing is called."""
        function, arguments = self.pop(2)
        self.stack.append(describe_call(function, arguments))

    def new_object(self) -> None:
        kind, arguments = self.pop(2)
        is_class = type(kind) is Global and kind.module.split(".")[0] == "__torch__"
        if not is_class or type(arguments) is not tuple or arguments:
            refuse(f"a pickle makes an instance of {short_repr(kind)}")
        self.stack.append(Object())

    def build(self) -> None:
        [state] = self.pop(1)
        target = self.top()
        if type(state) is not dict:
            refuse(f"a pickle sets the state of an object to {short_repr(state)}")
        if type(target) is Object and target.attributes is None:
            target.attributes = state
        elif type(target) is not OrderedDict:  # there it is `_metadata`: versions, not weights
            refuse(f"a pickle sets the state of {short_repr(target)}")

    def storage(self) -> None:
        """A reference to numbers elsewhere in the file, the same for every use of its key."""
        [reference] = self.pop(1)
        found = describe_storage(reference)
        if self.storages.setdefault(found.key, found) != found:
            refuse(f"storage {found.key} is described in two ways")
        self.stack.append(found)

    def step(self, code: int) -> None:
        """One opcode; ValueError for any that PyTorch does not write."""
        if code in _CONSTANTS:
            self.stack.append(_CONSTANTS[code])
        elif code in _EMPTY:
            self.stack.append(_EMPTY[code]())
        elif code in _NUMBERS:
            self.stack.append(self.number(_NUMBERS[code]))
        elif code in _PUT:
            self.memo[self.number(_PUT[code])] = self.top()
        elif code in _GET:
            index = self.number(_GET[code])
            if index not in self.memo:
                refuse(f"a pickle reads entry {index} of its memo before it is written")
            self.stack.append(self.memo[index])
        elif code in _TUPLES:
            self.stack.append(tuple(self.pop(_TUPLES[code])))
        elif code in self.actions:
            self.actions[code](self)
        elif code in _OTHERS and self.protocol > 2:
            raise ValueError(
                f"expected a pickle of tensors and plain containers, got {_OTHERS[code]} in it; "
                "save model.state_dict() alone"
            )
        else:
            refuse(f"opcode {code:#04x} at byte {self.at - 1} is none that PyTorch writes")


_Actions = dict[int, Callable[[_Machine], None]]
_ACTIONS: _Actions = {
    ord("("): _Machine.mark,
    ord("t"): _Machine.end_tuple,
    ord("X"): _Machine.text,
    0x8A: _Machine.long,
    ord("a"): lambda machine: machine.append(machine.pop(1)),
    ord("e"): lambda machine: machine.append(machine.above_mark()),
    ord("s"): lambda machine: machine.set_items(machine.pop(2)),
    ord("u"): lambda machine: machine.set_items(machine.above_mark()),
    ord("c"): _Machine.name,
    ord("R"): _Machine.reduce,
    0x81: _Machine.new_object,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.storage,
}
# Of protocol 4 and later: other ways to say what protocol 2 says.
_ACTIONS_4: _Actions = {
    0x8C: lambda machine: machine.text("<B"),
    0x8D: lambda machine: machine.text("<Q"),
    0x93: _Machine.name_from_stack,
    0x94: _Machine.memoize,
    0x95: _Machine.frame,
}


def load(data: memoryview, at: int = 0, *, is_archive: bool = False) -> Pickle:
    """Read the pickle that starts at byte `at`, with inert descriptions for all it names.

    `is_archive`: classes of a TorchScript archive may occur. ValueError at anything that PyTorch
    does not write.
    """
    machine = _Machine(data, at, is_archive)
    for _ in range(MOST_STEPS):
        code = machine.take(1)[0]
        if code == _STOP:
            [value] = machine.pop(1)
            if machine.stack or machine.below:
                refuse("a pickle ends with more than one value")
            return Pickle(value, machine.storages, machine.at)
        machine.step(code)
    refuse(f"a pickle takes more than {MOST_STEPS} steps")
