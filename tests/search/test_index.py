"""The index: only what is new is encoded, and nothing that ends a process makes it wrong."""

import errno
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

import jaxclip
from jaxclip.data.folders import INDEX
from jaxclip.search import index, read, update
from jaxclip.search.catalogue import Catalogue
from tests.support import indexed

ROOT = Path(__file__).parents[2]


def refuse(pixels: np.ndarray) -> np.ndarray:
    raise AssertionError("nothing is to be encoded")


NOTHING = indexed.tower(encode=refuse)


def test_every_picture_gets_its_own_vector(tmp_path: Path) -> None:
    paths = indexed.fill(tmp_path, 70)
    report = indexed.run(tmp_path)
    assert (report.pictures, report.encoded, report.broken) == (70, 70, {})
    assert indexed.check(tmp_path, exactly=set(paths)) == 70


def test_the_check_finds_swapped_vectors(tmp_path: Path) -> None:
    indexed.fill(tmp_path, 5)
    indexed.run(tmp_path)
    with sqlite3.connect(tmp_path / INDEX / index.FACTS) as db:
        db.execute("UPDATE vectors SET row = row + 100 WHERE row < 2")
        db.execute("UPDATE vectors SET row = 101 - row WHERE row >= 100")
    db.close()
    with pytest.raises(AssertionError):
        indexed.check(tmp_path)


def test_a_second_run_reads_and_encodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed.fill(tmp_path, 40)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    indexed.age(tmp_path)
    monkeypatch.setattr(read, "SETTLED", 0)  # the times of change are of now
    time.sleep(0.05)
    assert indexed.run(tmp_path).encoded == 40
    monkeypatch.setattr(read, "read_picture", None)
    report = indexed.run(tmp_path, NOTHING)
    assert (report.pictures, report.encoded, report.known, report.new) == (40, 0, 0, [])
    assert list(report.broken) == [b"broken.png"]


def test_only_new_and_changed_files_are_encoded(tmp_path: Path) -> None:
    paths = indexed.fill(tmp_path, 10)
    indexed.run(tmp_path)
    indexed.write_picture(paths[3], 1003)
    paths.append(indexed.write_picture(tmp_path / "new.png", 1004))
    paths.pop(0).unlink()
    report = indexed.run(tmp_path)
    assert (report.pictures, report.encoded, report.known, report.gone) == (10, 2, 0, 1)
    assert indexed.check(tmp_path, exactly=set(paths)) == 10


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path: Path) -> None:
    """Within a tick of the clock, or by `cp -p`: the time of change tells."""
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6 2 1 255\n" + bytes(6))
    os.utime(path, (1e9, 1e9))
    indexed.run(tmp_path)
    path.write_bytes(b"P6 2 1 255\n" + bytes([255] * 6))
    os.utime(path, (1e9, 1e9))
    assert indexed.run(tmp_path).encoded == 1
    assert indexed.check(tmp_path) == 1


def test_moved_renamed_and_copied_files_are_recognised(tmp_path: Path) -> None:
    paths = indexed.fill(tmp_path, 9)
    indexed.run(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    moved = paths[0].rename(tmp_path / "elsewhere" / "x.png")
    copied = tmp_path / "copy.png"
    copied.write_bytes(paths[1].read_bytes())
    report = indexed.run(tmp_path, NOTHING)
    assert (report.pictures, report.encoded, report.known, report.gone) == (10, 0, 2, 1)
    indexed.check(tmp_path, exactly={*paths[1:], moved, copied})


def test_the_whole_folder_may_be_moved(tmp_path: Path) -> None:
    indexed.fill(tmp_path / "a", 5)
    indexed.run(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert indexed.run(tmp_path / "b", NOTHING).pictures == 5


def test_several_models_stand_side_by_side(tmp_path: Path) -> None:
    indexed.fill(tmp_path, 6)
    assert indexed.run(tmp_path).encoded == 6
    other = indexed.tower("b" * 64, lambda pixels: indexed.encode(pixels)[:, :5])
    assert indexed.run(tmp_path, other).encoded == 6
    assert indexed.run(tmp_path, NOTHING).encoded == 0
    with Catalogue(tmp_path / INDEX / index.FACTS, write=False) as catalogue:
        assert [model.width for model in catalogue.models()] == [indexed.WIDTH, 5]


def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = indexed.fill(tmp_path, 3)

    def change(pixels: np.ndarray) -> np.ndarray:
        indexed.write_picture(paths[1], 77)  # read already, and not yet committed
        return indexed.encode(pixels)

    indexed.run(tmp_path, indexed.tower(encode=change))
    assert indexed.run(tmp_path).encoded == 1
    assert indexed.check(tmp_path, exactly=set(paths)) == 3


def test_a_young_file_is_not_trusted_by_its_time(tmp_path: Path) -> None:
    path = indexed.write_picture(tmp_path / "a.png", 1)
    facts = read.read_picture(b"a.png", str(path), indexed.PREPROCESS.safe, set(), "").facts
    assert facts.changed == 0


def test_broken_files_are_counted_and_named(tmp_path: Path) -> None:
    paths = indexed.fill(tmp_path, 99)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    report = indexed.run(tmp_path)
    assert report.new == [b"broken.jpg"] and "JPEG" in report.broken[b"broken.jpg"]
    assert indexed.check(tmp_path, exactly=set(paths)) == 100
    indexed.write_picture(tmp_path / "good.png", 5).replace(tmp_path / "broken.jpg")
    assert indexed.run(tmp_path).broken == {}


def test_a_damaged_block_is_found_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "BLOCK", 32)
    monkeypatch.setattr(update, "SECONDS", 1e9)
    paths = indexed.fill(tmp_path, 96)
    indexed.run(tmp_path)
    (store,) = (tmp_path / INDEX).glob("*.f16")
    content = bytearray(store.read_bytes())
    content[40 * 2 * indexed.WIDTH] ^= 1
    store.write_bytes(content)
    report = indexed.run(tmp_path)
    assert (report.damaged, report.encoded) == (1, 32)
    assert indexed.check(tmp_path, exactly=set(paths)) == 96
    store.write_bytes(content[:100])
    assert indexed.run(tmp_path).encoded == 96
    assert indexed.check(tmp_path, exactly=set(paths)) == 96


def test_damaged_facts_take_one_line(tmp_path: Path) -> None:
    indexed.fill(tmp_path, 2)
    indexed.run(tmp_path)
    (tmp_path / INDEX / index.FACTS).write_bytes(b"not a database" * 100)
    with pytest.raises(ValueError, match=r"damaged file .*; remove .* and index again"):
        indexed.run(tmp_path)


def test_holes_are_closed_once_they_are_the_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "HOLES", 0)
    paths = indexed.fill(tmp_path, 40)
    indexed.run(tmp_path)
    for path in paths[:30]:
        path.unlink()
    indexed.run(tmp_path, NOTHING)
    (store,) = (tmp_path / INDEX).glob("*.f16")
    assert store.stat().st_size == 10 * 2 * indexed.WIDTH
    assert indexed.check(tmp_path, exactly=set(paths[30:])) == 10
    assert indexed.run(tmp_path, NOTHING).encoded == 0


def _kill_again_and_again(root: Path, kills: int, block: int, most: float) -> None:
    """Kill `index` at random moments; no vector that counts is lost, wrong or there twice."""
    rng, done, killed = np.random.default_rng(0), 0, 0
    command = [sys.executable, "-m", "tests.support.indexed", str(root), str(block)]
    while killed < kills:
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None and child.stdout.readline() == "begins\n"
        time.sleep(float(rng.uniform(0, most)))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        killed += 1
        if (root / INDEX / index.FACTS).is_file():
            with Catalogue(root / INDEX / index.FACTS, write=True):
                pass  # a writer rolls back what the killed process left
            now = indexed.check(root)
            assert now >= done
            done = now


def test_a_kill_at_any_moment_loses_no_vector_that_counts(tmp_path: Path) -> None:
    paths = indexed.fill(tmp_path, 300)
    _kill_again_and_again(tmp_path, 5, block=32, most=0.4)
    indexed.run(tmp_path)
    assert indexed.check(tmp_path, exactly=set(paths)) == 300


@pytest.mark.slow
def test_twenty_kills_on_5000_files(tmp_path: Path) -> None:
    paths = indexed.fill(tmp_path, 5000)
    _kill_again_and_again(tmp_path, 20, block=64, most=1.0)
    indexed.run(tmp_path)
    assert indexed.check(tmp_path, exactly=set(paths)) == 5000


def test_ctrl_c_keeps_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "BLOCK", 32)
    paths, calls = indexed.fill(tmp_path, 96), []

    def interrupted(pixels: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return indexed.encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        indexed.run(tmp_path, indexed.tower(encode=interrupted))
    assert indexed.check(tmp_path) == 64
    assert indexed.run(tmp_path).encoded == 32
    assert indexed.check(tmp_path, exactly=set(paths)) == 96


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch):
    """No file may grow beyond some size: what a full disk looks like from inside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, old)


@pytest.mark.parametrize("size", [30_000, 61_000, 85_000, 110_000])
def test_a_full_disk_takes_one_line_and_nothing_else(
    tmp_path: Path, small_files, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(update, "BLOCK", 64)
    paths = indexed.fill(tmp_path, 600)
    small_files(size)
    with pytest.raises(ValueError, match=r"cannot be (used|written)"):
        indexed.run(tmp_path)
    small_files(resource.RLIM_INFINITY)
    if (tmp_path / INDEX / index.FACTS).is_file():
        with Catalogue(tmp_path / INDEX / index.FACTS, write=True):
            pass
        indexed.check(tmp_path)
    indexed.run(tmp_path)
    assert indexed.check(tmp_path, exactly=set(paths)) == 600


def test_a_full_disk_under_the_vectors_keeps_the_blocks_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "BLOCK", 32)
    indexed.fill(tmp_path, 96)
    append, calls = index.Store.append, []

    def full(self, vectors):
        calls.append(1)
        if len(calls) == 3:
            self.file.write(bytes(7))  # a part of it is written
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, vectors)

    monkeypatch.setattr(index.Store, "append", full)
    with pytest.raises(ValueError, match=r"No space left .* 64 of 96 files are done and stay"):
        indexed.run(tmp_path)
    assert indexed.check(tmp_path) == 64
    monkeypatch.undo()
    assert indexed.run(tmp_path).encoded == 32
    assert indexed.check(tmp_path) == 96


def test_a_second_writer_waits_with_a_word(tmp_path: Path) -> None:
    indexed.fill(tmp_path, 5)
    folder, said, entered = tmp_path / INDEX, threading.Event(), threading.Event()

    def second() -> None:
        with index.writing(folder, said.set) as catalogue:
            entered.set()
            update.update(tmp_path, folder, catalogue, NOTHING, indexed.PREPROCESS.safe)

    thread = threading.Thread(target=second)
    with index.writing(folder) as catalogue:
        with pytest.raises(index.BeingWritten, match="another process writes"):
            indexed.run(tmp_path)
        thread.start()
        assert said.wait(20) and not entered.is_set()
        update.update(tmp_path, folder, catalogue, indexed.tower(), indexed.PREPROCESS.safe)
    thread.join(20)
    assert entered.is_set() and indexed.check(tmp_path) == 5


def test_an_index_elsewhere_is_of_one_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "index"
    for name in ("a", "b"):
        indexed.fill(tmp_path / name, 3)
    with index.writing(elsewhere) as catalogue:
        update.update(
            tmp_path / "a", elsewhere, catalogue, indexed.tower(), indexed.PREPROCESS.safe
        )
        assert not (tmp_path / "a" / INDEX).exists()
        with pytest.raises(ValueError, match=r"expected the index of '.*b', got that of '.*a'"):
            update.update(
                tmp_path / "b", elsewhere, catalogue, indexed.tower(), indexed.PREPROCESS.safe
            )
        (tmp_path / "a").rename(tmp_path / "c")
        assert (
            update.update(
                tmp_path / "c", elsewhere, catalogue, NOTHING, indexed.PREPROCESS.safe
            ).pictures
            == 3
        )


@pytest.mark.parametrize(
    "name", [b"a b.png", b'it\'s "q".png', b"new\nline.png", b"\xe9\xff.png", "日本.png".encode()]
)
def test_odd_names_and_links_in_circles(tmp_path: Path, name: bytes) -> None:
    try:
        picture = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        indexed.write_picture(picture, 1)
    except OSError:
        pytest.skip("the file system takes no such name")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to("self.png")
    report = indexed.run(tmp_path)
    assert (report.pictures, report.broken) == (1, {})
    assert indexed.check(tmp_path, exactly={picture}) == 1


def test_a_copy_of_the_tree_that_is_not_installed_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(name: str) -> str:
        if name == "jaxclip":
            raise PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(read, "version", of)
    read.decoders.cache_clear()
    found = read.decoders()
    read.decoders.cache_clear()
    assert found.startswith(f"{jaxclip.__version__} 1.2")
