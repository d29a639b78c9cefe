"""Digests of a source: the same for the same records, another for whatever is not the same."""

from __future__ import annotations

from jaxclip.data import fingerprint
from jaxclip.data.labelled import Example
from jaxclip.data.pairs import Pair
from jaxclip.evaluation import keys

EXAMPLES = [Example(b"a", 0, "a.png"), Example(b"b", 1, "b.png"), Example(b"a", -1, "c.png")]


def digests(source) -> list[fingerprint.Digest]:
    return list(fingerprint.digests(source))


def test_picture_place_and_label_are_told_apart():
    first = digests(EXAMPLES)
    assert first == digests(EXAMPLES)
    for other, changed in (
        (Example(b"x", 0, "a.png"), (True, False)),
        (Example(b"a", 0, "x.png"), (True, False)),
        (Example(b"a", 1, "a.png"), (False, True)),
    ):
        (found,) = digests([other])
        assert (found.picture != first[0].picture, found.words != first[0].words) == changed


def test_captions_count_in_their_order_and_number():
    captions = [("a b",), ("a", "b"), ("b", "a"), ("a",), (), ("a\udcff",)]
    found = digests([Pair(b"", each, "a.png") for each in captions])
    assert len({each.words for each in found}) == len(captions)
    assert len({each.picture for each in found}) == 1


def test_the_order_of_records_counts(monkeypatch):
    """Also over the seam of two chunks."""
    monkeypatch.setattr(fingerprint, "CHUNK", 2)
    assert digests(EXAMPLES[::-1]) == digests(EXAMPLES)[::-1]
    assert keys.of_source(EXAMPLES, "labels") != keys.of_source(EXAMPLES[::-1], "labels")


def test_a_record_that_cannot_be_read_has_a_digest_of_its_reason():
    class Broken(list):
        def __getitem__(self, i):
            raise ValueError(super().__getitem__(i))

    found = digests(Broken(["no header", "no end"]))
    assert len({each.picture for each in found}) == 2


def test_differences_are_named():
    key = keys.of_values(batch_size=3, data="x")
    assert list(key) == ["batch size", "data"] and keys.differences(dict(key), key) == ""
    assert keys.differences(keys.of_values(batch_size=4, data="x"), key) == "batch size"
    assert keys.differences(key | {"old": ""}, key | {"new": ""}) == "new, old"
    assert keys.differences("ab" * 32, key) == keys.differences(None, key) == "the form of its key"
