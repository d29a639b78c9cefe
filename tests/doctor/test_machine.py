"""`jaxclip doctor`: what it says of this machine, and of one that lacks something."""

import importlib.metadata
import json

import pytest

from jaxclip import cli
from jaxclip.doctor import machine
from tests.support.command import fails


def test_machine_is_reported_in_lines_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == [
        "jaxclip",
        "packages",
        "backend",
        "precision",
    ]
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backend"]["platform"] == "cpu" and found["wrong"] == []
    assert found["versions"]["numpy"] == importlib.metadata.version("numpy")
    assert found["extras"]["test"] and set(found["memory"]) == {"total", "free"}


def test_json_before_another_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--json" in fails(capsys, 2, "doctor", "--json", "probe")


@pytest.mark.parametrize(
    ("version", "least", "older"),
    [
        ("0.10.2", "0.10.2", False),
        ("0.9.9", "0.10.2", True),
        ("0.10.2.dev3", "0.10.2", False),
        ("2", "2.0", False),
        ("1.9", "2", True),
        ("11.0.0", "11.0", False),
    ],
)
def test_version_is_compared_by_its_numbers(version: str, least: str, older: bool) -> None:
    assert machine.is_older(version, least) == older


def test_old_package_is_named_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = machine.installed
    monkeypatch.setattr(machine, "installed", lambda n: "1.2" if n == "numpy" else known(n))
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "numpy: expected 2.0 or newer, got 1.2; pip install -U numpy" in out


def test_missing_package_does_not_stop_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "installed", lambda name: None)
    assert cli.main(["doctor"]) == 1
    assert "flax: expected 0.12.8 or newer, got none" in capsys.readouterr().out


def test_backend_that_does_not_start_takes_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import jax

    def broken() -> None:
        raise RuntimeError("no device\nand more")

    monkeypatch.setattr(jax, "devices", broken)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "expected a backend, got an error (RuntimeError: no device)" in out


def test_machine_that_was_never_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    assert machine.requirements() == []
    assert machine.describe_machine(machine.examine_machine())


def test_extra_of_extras_is_there_only_with_all_of_it() -> None:
    needed = [
        machine.Requirement("numpy", (), "2.0", "mine"),
        machine.Requirement("no-such-package", (), "", "mine"),
        machine.Requirement("numpy", (), "", "other"),
    ]
    assert not machine.extra_is_there(needed, "mine") and machine.extra_is_there(needed, "other")


def test_old_package_of_an_extra_counts_only_where_the_extra_is_whole() -> None:
    old = machine.Requirement("numpy", (), "99", "mine")
    absent = machine.Requirement("no-such-package", (), "", "mine")
    assert machine.check_packages([old, absent])[1] == []
    assert "numpy: expected 99 or newer for the extra mine" in machine.check_packages([old])[1][0]
