"""Text on its way to a terminal: no name steers it, no encoding or closed pipe breaks a program.

A program of ours runs inside `run_program`; what it prints of names goes through `printable`.
"""

import logging
import os
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress

FAILED = 1
CLOSED_PIPE = 141  # the exit code of a program that SIGPIPE ended: 128 + 13
_STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, bidi and formats, half pairs, line ends
_JOINERS = "\u200c\u200d"  # in emoji and in Persian or Indic words, where they only shape letters


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _STEERING or character in _JOINERS:
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def printable(text: object) -> str:
    r"""A text with everything escaped that could steer a terminal, line ends too.

    >>> printable("a\x1b[31m cat\u202e.png")
    'a\\x1b[31m cat\\u202e.png'
    """
    shown = str(text)
    return shown if shown.isprintable() else "".join(map(_escape, shown))


def one_line(text: object) -> str:
    """A message as one printable line; its white space becomes single spaces."""
    return printable(" ".join(str(text).split()))


class PrintableFormatter(logging.Formatter):
    """Log records in printable lines, ours in one each."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = super().formatMessage(record)
        lines = [message] if record.name.startswith("jaxclip") else message.split("\n")
        return "\n".join(map(printable, lines))


def complain(name: str, message: object) -> None:
    """Print one line of the program `name` on standard error."""
    if sys.stderr is not None:  # None would mean standard output
        print(f"{name}: {one_line(message)}", file=sys.stderr)


def _prepare_streams() -> None:
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  (closed by the caller's shell)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a stream of somebody's own
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if logging.lastResort is not None:  # the handler of loggers that nobody configured
        logging.lastResort.setFormatter(PrintableFormatter())


def _discard_output() -> None:
    """Let nothing that is still buffered, or printed later, meet the closed pipe again."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _work_or_complain(name: str, work: Callable[[], int], interrupted: str) -> int:
    message: object = interrupted
    try:
        return work()
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        message = error
    except KeyboardInterrupt:
        pass
    complain(name, message)
    return FAILED


def run_program(name: str, work: Callable[[], int], interrupted: str = "interrupted") -> int:
    """The exit code of `work`; a failure takes one printable line on standard error and is 1.

    What a stream's encoding lacks is written as an escape. Where the reader of the output has gone
    (`| head`), the program ends without a word, with the exit code of other Unix programs then.

    Args:
      name: of the program, at the start of the line.
      work: the program; ValueError, OSError and Ctrl-C are failures.
      interrupted: what to say after Ctrl-C.
    """
    try:
        _prepare_streams()
        try:
            return _work_or_complain(name, work, interrupted)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return CLOSED_PIPE
    except OSError as error:  # a full disk behind standard output
        complain(name, f"cannot write the output: {error.strerror}")
        _discard_output()
        return FAILED
