"""Hub ids: fetched once, verified, used without the network; every fault is one clear line."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxclip
from jaxclip import checkpoint
from jaxclip.hub import hugging_face
from jaxclip.hub.find import find
from jaxclip.hub.hugging_face import HubName, choose_files, parse
from tests.support import foreign, hub_server

constants = pytest.importorskip("huggingface_hub.constants")
REPO = "someone/clip-small"


def files_of_a_model(folder: Path) -> dict[str, bytes]:
    arrays = foreign.hugging_face(foreign.openai())
    checkpoint.save_arrays(folder / "model.safetensors", arrays, {"format": "pt"})
    foreign.write_json(folder / "config.json", foreign.hugging_face_config())
    foreign.write_json(folder / "preprocessor_config.json", {"size": 20, "crop_size": 20})
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {"pytorch_model.bin": b"x" * 20_000, "README.md": b"# A model"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return files_of_a_model(tmp_path_factory.mktemp("files"))


@pytest.fixture
def server(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[hub_server.Server]:
    """A server with one model, and empty caches of the Hub and of jaxclip."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr(hugging_face, "TIMEOUT", 1.0)
    monkeypatch.setenv("JAXCLIP_CACHE", str(tmp_path / "ours"))
    for name in ("JAXCLIP_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with hub_server.running(REPO, dict(files)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (REPO, HubName(REPO, None, "")),
        (f"hf-hub:{REPO}", HubName(REPO, None, "")),
        (f"{REPO}@v1.0", HubName(REPO, "v1.0", "")),
        (f"{REPO}/text_encoder@main", HubName(REPO, "main", "text_encoder")),
        ("model", None),
        ("runs/model.safetensors", None),
        ("../x/y", None),
        ("a/b/../c", None),
        ("https://huggingface.co/a/b", None),
        ("/a/b", None),
        ("", None),
    ],
)
def test_ids_are_told_from_paths(text: str, expected: HubName | None) -> None:
    assert parse(text) == expected


def test_weights_of_one_kind_are_chosen() -> None:
    there = {"config.json", "model.safetensors", "open_clip_model.safetensors", "a.bin"}
    assert choose_files(there | {"tokenizer.json"}) == [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    ]
    assert choose_files({"open_clip_pytorch_model.bin", "open_clip_model.safetensors"}) == [
        "open_clip_model.safetensors"
    ]


def test_a_model_is_fetched_once_and_then_used_without_the_network(
    server: hub_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, preprocess = jaxclip.load(REPO)
    assert model.config == foreign.config() and preprocess.size == 20
    asked = [line for line in server.seen if line.startswith("GET") and "resolve" in line]
    assert not any("pytorch_model.bin" in line or "README" in line for line in asked)
    server.seen.clear()
    assert find(REPO) == find(f"hf-hub:{REPO}") and not server.seen
    monkeypatch.setattr(socket, "create_connection", None)  # nobody may call it
    monkeypatch.setenv("JAXCLIP_OFFLINE", "1")
    again, _ = jaxclip.load(REPO)
    np.testing.assert_array_equal(again.visual.proj[...], model.visual.proj[...])
    assert not server.seen


@pytest.mark.parametrize("variable", ["JAXCLIP_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_no_name_reaches_the_network(
    server: hub_server.Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OSError, match="forbids to fetch it"):
        jaxclip.load(REPO)
    assert not server.seen


def test_what_another_program_cached_serves_as_well(
    server: hub_server.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """A folder laid out as the Hub's, without a note of ours and without the network."""
    root = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}"
    snapshot = root / "snapshots" / hub_server.COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(hub_server.COMMIT)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_bytes(server.files[name])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert jaxclip.load(REPO)[0].config == foreign.config()
    assert "no preprocessor_config.json" in capsys.readouterr().err
    assert not server.seen


def test_sharded_weights_are_fetched_whole(server: hub_server.Server, tmp_path: Path) -> None:
    arrays = foreign.hugging_face(foreign.openai())
    names = sorted(arrays)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    index: dict[str, str] = {}
    for file, part in halves.items():
        checkpoint.save_arrays(tmp_path / file, {name: arrays[name] for name in part}, {})
        server.files[file] = (tmp_path / file).read_bytes()
        index |= dict.fromkeys(part, file)
    del server.files["model.safetensors"]
    server.files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    assert jaxclip.load(REPO)[0].config == foreign.config()


def test_a_revision_is_taken_or_refused(server: hub_server.Server) -> None:
    assert find(f"{REPO}@{hub_server.COMMIT}").name == hub_server.COMMIT
    with pytest.raises(ValueError, match="expected a revision that it has, got 'v9'"):
        find(f"{REPO}@v9")


def test_a_folder_that_is_here_is_no_name_of_the_hub(
    server: hub_server.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    with pytest.raises(ValueError, match="no model is named"):
        find(REPO)
    assert not server.seen


FAULTS = [
    ("list", 404, ValueError, "not there or is private"),
    ("list", 401, ValueError, "not there or is private"),
    ("list", 403, OSError, "terms have to be accepted"),
    ("list", 500, OSError, "got the answer 500"),
    ("list", "slow", OSError, "expected its files from the Hub, got none"),
    ("model.safetensors", "wrong", ValueError, "model.safetensors: expected .* with digest"),
    ("config.json", "wrong", ValueError, "config.json: expected .* with digest"),
    ("model.safetensors", 403, OSError, "got the answer 403"),
]


@pytest.mark.parametrize(("what", "fault", "kind", "words"), FAULTS)
def test_a_fault_of_the_hub_is_one_clear_line(
    server: hub_server.Server, what: str, fault: Any, kind: type[Exception], words: str
) -> None:
    server.faults[what] = fault
    with pytest.raises(kind, match=words) as error:
        jaxclip.load(REPO)
    assert "\n" not in str(error.value)
    server.faults.clear()
    assert jaxclip.load(REPO)[0].config == foreign.config(), "nothing bad stays"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["truncated", "slow"])
def test_a_download_that_ends_early_is_one_clear_line(
    server: hub_server.Server, fault: str
) -> None:
    """The library itself tries five times."""
    server.faults["model.safetensors"] = fault
    with pytest.raises(OSError, match=REPO) as error:
        jaxclip.load(REPO)
    assert "\n" not in str(error.value)
    server.faults.clear()
    assert jaxclip.load(REPO)[0].config == foreign.config()


def test_another_repository_is_not_there(server: hub_server.Server) -> None:
    with pytest.raises(ValueError, match="got 'someone/else'"):
        jaxclip.load("someone/else")


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxclip\[hub\]'"):
        find(REPO)
