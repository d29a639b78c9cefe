"""Exact search and groups, held against brute force in NumPy."""

import threading
from pathlib import Path

import numpy as np
import pytest

from jaxclip.data.folders import INDEX
from jaxclip.search import index, query, similar
from jaxclip.search.catalogue import Block
from tests.support import indexed
from tests.support.tolerances import within

KEY = "a" * 64


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def whole(n: int) -> list[Block]:
    return [Block(0, n, 0)]


def test_half_precision_becomes_float32_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[(bits & 0x7C00) != 0x7C00]  # all finite numbers
    got = np.asarray(query.from_half(bits))
    assert (got == bits.view(np.float16).astype(np.float32)).all()


@pytest.mark.parametrize(("n", "d"), [(1, 3), (63, 512), (64, 7), (1000, 512), (9001, 512)])
def test_the_ranking_equals_brute_force(n: int, d: int) -> None:
    vectors, direction = unit_rows(n, d), unit_rows(1, d, 1)[0].astype(np.float32)
    right = vectors.astype(np.float64) @ direction
    rows, scores = query.best(vectors, whole(n), direction, 20)
    np.testing.assert_allclose(scores, right[rows], atol=within("cosines of float16"))
    order = np.argsort(-right, kind="stable")[:20]
    ours = rows[np.argsort(-scores, kind="stable")][:20]
    # another order only among equals
    np.testing.assert_allclose(right[ours], right[order], atol=within("cosines of float16"))
    assert len(rows) == min(n, 20)


def test_another_query_has_another_ranking() -> None:
    vectors = unit_rows(1000, 64)
    found = [
        query.best(vectors, whole(1000), unit_rows(1, 64, seed)[0].astype(np.float32), 20)[0]
        for seed in (1, 2)
    ]
    assert set(found[0]) != set(found[1])


def test_all_that_equal_the_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "CHUNK", 64 * 2 * 8)
    vectors = np.repeat(unit_rows(1, 8), 500, axis=0)
    rows, _ = query.best(vectors, whole(500), vectors[0].astype(np.float32), 3)
    assert rows.tolist() == list(range(500))


def test_holes_never_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "CHUNK", 64 * 2 * 8)
    vectors, direction = unit_rows(400, 8), unit_rows(1, 8, 1)[0].astype(np.float32)
    blocks = [Block(10, 60, 0), Block(70, 1, 0), Block(130, 100, 0), Block(300, 90, 0)]
    alive = np.zeros(400, bool)
    for block in blocks:
        alive[block.first : block.first + block.rows] = True
    vectors[~alive] = np.nan
    rows, _ = query.best(vectors, blocks, direction, 400)
    assert sorted(rows) == np.flatnonzero(alive).tolist()


def test_equal_pictures_stand_by_path_and_the_gone_are_left_out(tmp_path: Path) -> None:
    paths = indexed.fill(tmp_path, 30)
    content = paths[0].read_bytes()
    for name in ("z", "a", "m"):
        (tmp_path / f"{name}.png").write_bytes(content)
    indexed.run(tmp_path)
    with query.reading(tmp_path / INDEX, KEY) as snapshot:
        hits = snapshot.search(indexed.expected(paths[0]).astype(np.float32), 3)
        assert [hit.path for hit in hits] == [b"0/00000.png", b"a.png", b"m.png"]
        assert hits[0].score == pytest.approx(1, abs=1e-3)
    with index.writing(tmp_path / INDEX) as catalogue, catalogue.transaction():
        catalogue.remove_files([b"0/00000.png", b"a.png", b"m.png", b"z.png"])
    with query.reading(tmp_path / INDEX, KEY) as snapshot:
        hits = snapshot.search(indexed.expected(paths[0]).astype(np.float32), 29)
        assert len(hits) == 29 and b"a.png" not in {hit.path for hit in hits}
        assert len(snapshot.search(np.zeros(indexed.WIDTH, np.float32), 99)) == 29


def test_the_search_of_a_folder_equals_brute_force(tmp_path: Path) -> None:
    paths = indexed.fill(tmp_path, 50)
    indexed.run(tmp_path)
    direction = unit_rows(1, indexed.WIDTH, 3)[0].astype(np.float32)
    scores = {path: float(indexed.expected(path) @ direction) for path in paths}
    right = sorted(paths, key=lambda path: -scores[path])[:10]
    with query.reading(tmp_path / INDEX, KEY) as snapshot:
        hits = snapshot.search(direction, 10)
    ours = [Path(query.full_path(tmp_path, hit.path)) for hit in hits]
    np.testing.assert_allclose(
        [scores[x] for x in ours], [scores[x] for x in right], atol=2 * within("cosines of float16")
    )


def test_a_reader_searches_while_another_writes(tmp_path: Path) -> None:
    indexed.fill(tmp_path, 200)
    indexed.run(tmp_path)
    for i in range(200, 400):
        indexed.write_picture(tmp_path / f"{i}.png", i)
    direction = unit_rows(1, indexed.WIDTH)[0].astype(np.float32)
    writer = threading.Thread(target=indexed.run, args=[tmp_path])
    writer.start()
    counts = []
    while writer.is_alive() or not counts:
        with query.reading(tmp_path / INDEX, KEY) as snapshot:
            counts.append(len(snapshot.search(direction, 1000)))
    writer.join()
    assert counts == sorted(counts) and counts[0] >= 200
    assert indexed.check(tmp_path) == 400


def test_no_index_and_no_such_model_take_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected an index, got none; run jaxclip index"):
        query.reading(tmp_path, KEY).__enter__()
    indexed.fill(tmp_path, 2)
    indexed.run(tmp_path)
    with pytest.raises(ValueError, match="got those of stand-in a; run jaxclip index"):
        query.reading(tmp_path / INDEX, "b" * 64).__enter__()


def brute_force_groups(vectors: np.ndarray, threshold: float) -> np.ndarray:
    near = vectors.astype(np.float64) @ vectors.astype(np.float64).T >= threshold
    group = np.arange(len(vectors))
    for _ in range(len(vectors)):
        group = np.array([group[row].min() for row in near | np.eye(len(near), dtype=bool)])
    return group


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_groups_equal_brute_force(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "TILE", 16)
    vectors = unit_rows(70, 16)
    vectors[[5, 40, 69]] = vectors[0]
    got = similar.groups_of_rows(vectors, threshold)
    assert (got == brute_force_groups(vectors, threshold)).all()


def test_copies_are_similar_and_others_are_not(tmp_path: Path) -> None:
    paths = indexed.fill(tmp_path, 20)
    (tmp_path / "copy.png").write_bytes(paths[4].read_bytes())
    indexed.run(tmp_path)
    with query.reading(tmp_path / INDEX, KEY) as snapshot:
        assert similar.similar(snapshot, 0.999) == [[b"1/00004.png", b"copy.png"]]
