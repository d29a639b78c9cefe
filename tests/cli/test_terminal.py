"""What programs print: names steer no terminal, no encoding and no closed pipe breaks them."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.lib import common
from jaxclip import cli
from jaxclip.cli.shared import print_line, print_table, stderr
from jaxclip.terminal import PrintableFormatter, one_line, printable, run_program

ROOT = Path(__file__).parents[2]
PICTURE = (ROOT / "examples" / "rocket.png").read_bytes()
STEERING = [*range(0x20), 0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
STEERING += [0x200E, 0x200F, 0x200B, 0xFEFF, 0x2028, 0x2029, 0xD800, 0xDCFF, 0xE0041]
NASTY = "a\x1b[31m\x07\x7f\x9b\u202eb"
SHOWN = r"a\x1b[31m\x07\x7f\x9b\u202eb"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, as a shell starts it."""
    command = [sys.executable, "-m", "jaxclip", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, cwd=ROOT, check=False
    )


def raw(text: str) -> list[str]:
    """What is in a text that a terminal would obey."""
    return [c for c in text if ord(c) in STEERING and c != "\n"]


@pytest.mark.parametrize("code", STEERING)
def test_what_steers_a_terminal_is_escaped(code: int) -> None:
    shown = printable(f"x{chr(code)}y")
    assert shown.startswith("x\\") and shown.endswith("y") and shown.isprintable()


def test_a_byte_that_is_not_utf8_is_shown_as_a_byte() -> None:
    assert printable("a\udcff") == r"a\xff"


@pytest.mark.parametrize(
    "text", ["a cat", "日本\u3000語", "naïve \\x", "👩\u200d🚀", "\u0646\u200c\u06cc"]
)
def test_other_text_stays(text: str) -> None:
    assert printable(text) == text


def test_a_message_takes_one_line() -> None:
    assert one_line(f"first\n second {NASTY}") == f"first second {SHOWN}"


def test_tables_and_lines_print_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table(NASTY, title=NASTY, caption=NASTY)
    table.add_row(f"{NASTY}\n[bold]:cat:[/x]")
    print_table(table)
    print_line(f"{NASTY}\nb")
    stderr.print(f"left out: {NASTY} [bold]:cat:[/x]", soft_wrap=True)
    out, err = capsys.readouterr()
    assert raw(out + err) == []
    assert out.count(SHOWN) == 5 and "[bold]:cat:[/x]" in out and "[bold]:cat:[/x]" in err


def test_logged_lines_print_no_control_characters() -> None:
    formatter = PrintableFormatter("[1] %(message)s")

    def shown(name: str) -> str:
        message = f"skipped {NASTY}\nb"
        return formatter.format(logging.LogRecord(name, 30, "", 0, message, None, None))

    assert shown("jaxclip.data") == rf"[1] skipped {SHOWN}\nb"
    assert shown("another") == f"[1] skipped {SHOWN}\nb"


def test_names_in_errors_print_no_control_characters(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = str(tmp_path / NASTY)
    for arguments in (
        ["classify", name, "--labels", "a", "b"],
        ["classify", "x.png", "--labels", NASTY, NASTY],
        ["inspect", name],
        ["embed", name, "--out", name],
        [NASTY],
        ["train", name, "--steps", NASTY],
        ["classify", "x.png", "--labels", "a", "--model", name],
    ):
        try:
            assert cli.main(arguments)
        except SystemExit as stop:
            assert stop.code == 2
        out, err = capsys.readouterr()
        assert out == "" and raw(err) == [] and err.count("\n") == 1, arguments
    flags = dataclasses.make_dataclass("Flags", [])
    assert common.run_experiment(lambda _: int(NASTY), flags, [], "x", "") == 1
    assert raw(capsys.readouterr().err) == []


def test_a_name_that_is_not_utf8_is_classified_and_embedded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\x1b[31m.png"
    Path(os.fsdecode(path)).write_bytes(PICTURE)
    ask = ["classify", os.fsdecode(path), "--labels", "rocket", "\udcff"]
    assert cli.main(ask) == 0
    out = capsys.readouterr().out
    assert raw(out) == [] and r"\xff" in out
    assert cli.main([*ask, "--json"]) == 0
    assert os.fsencode(json.loads(capsys.readouterr().out)["picture"]) == path
    assert cli.main(["embed", str(tmp_path), "--out", str(tmp_path / "e.npz")]) == 0
    (kept,) = np.load(tmp_path / "e.npz")["files"]
    assert os.fsencode(str(kept)) == path


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_every_encoding_of_the_output_will_do(encoding: str) -> None:
    done = run("tokenize", "日本 café", "--show", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stderr == b""
    assert b"caf" in done.stdout
    done = run("dance", PYTHONIOENCODING=encoding)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"---" not in done.stderr


def closed_pipe(*command: str) -> tuple[int, bytes]:
    """Exit code and standard error of a command whose reader has gone before it prints."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "jaxclip --help",
        "jaxclip models",
        "jaxclip models --json",
        "jaxclip tokenize a --show",
        "experiments.train",
    ],
)
def test_a_closed_pipe_ends_a_command_without_a_word(command: str) -> None:
    """As SIGPIPE ends other programs, whose exit code a shell shows as 141."""
    code, said = closed_pipe(sys.executable, "-m", *command.split())
    assert said == b""
    assert code == 141


def test_a_full_disk_is_told_in_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "jaxclip", "models"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"No space left on device" in done.stderr


def test_a_closed_output_ends_nothing() -> None:
    command = f"{sys.executable} -m jaxclip models >&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=ROOT, check=False).returncode == 0


def test_failures_have_their_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run_program("x", lambda: 3) == 3
    assert run_program("x", lambda: int("a cat")) == 1
    assert run_program("x", interrupted, "stopped") == 1
    said = capsys.readouterr().err.splitlines()
    assert [line[:3] for line in said] == ["x: ", "x: "] and said[1] == "x: stopped"


def test_a_device_that_fails_takes_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> None:
        def command() -> int:
            raise error

        monkeypatch.setattr(cli, "_command", lambda arguments: command)

    fail(jax.errors.JaxRuntimeError("INTERNAL: no algorithm worked\nat much.cc:1"))
    assert cli.main([]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "device failed: INTERNAL: no algorithm worked; try" in said
    fail(RuntimeError("a mistake of ours"))
    with pytest.raises(RuntimeError, match="of ours"):
        cli.main([])
