"""What `jaxclip train --force` may delete in the folder of a run, and what is no run's folder."""

import os
from pathlib import Path

import pytest

from jaxclip.cli.run_folder import FILES, FOLDERS, RunInputs, _prepare_folder, lock_folder
from jaxclip.cli.shared import UsageError
from jaxclip.training.recipe import Recipe

CONFIG, INPUTS = Recipe(), RunInputs(("emoji",))


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_files_of_somebodys_own_are_not_deleted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name if name in FILES else tmp_path / name / "mine"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"architectures": ["CLIPModel"]}')
    with pytest.raises(UsageError, match="expected the folder of a run"):
        _prepare_folder(tmp_path, CONFIG, INPUTS, force=True)
    assert path.read_text() == '{"architectures": ["CLIPModel"]}'


@pytest.mark.parametrize("damaged", ["config.json", "data.json"])
def test_a_run_starts_afresh_beside_somebodys_own_files(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "notes").mkdir()
    for name in ("thesis.txt", "notes/state", "result.csv"):
        (tmp_path / name).write_text("mine")
    _prepare_folder(tmp_path, CONFIG, INPUTS, force=True)
    (tmp_path / damaged).write_text("{")
    (tmp_path / "state" / "3").mkdir(parents=True)
    for name in ("model.safetensors", "result.json"):  # the report would show old scores
        (tmp_path / name).write_text("of the run")
    _prepare_folder(tmp_path, CONFIG, INPUTS, force=True)
    for name in ("thesis.txt", "notes/state", "result.csv"):
        assert (tmp_path / name).read_text() == "mine"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"config.json", "data.json", "thesis.txt", "notes", "result.csv"}


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_a_run_folder_that_its_states_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        _prepare_folder(tmp_path / os.fsdecode(b"\xff"), CONFIG, INPUTS, force=False)
    (tmp_path / "file").write_text("mine")
    for name in ("file", "file/run", "a\0b"):
        with pytest.raises(ValueError, match="expected a"), lock_folder(tmp_path / name):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_one_program_at_a_time_trains_in_a_folder(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "run"):
        with pytest.raises(UsageError, match="no other program"), lock_folder(tmp_path / "run"):
            pass
        with lock_folder(tmp_path / "other"):
            pass
    with lock_folder(tmp_path / "run"):
        assert list((tmp_path / "run").iterdir()) == []
