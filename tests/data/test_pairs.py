"""Sources of pairs and the stream over them: nothing twice, nothing lost in silence."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxclip.data import pairs
from jaxclip.data.crops import random_crop
from jaxclip.data.pairs import Pair, TarShards
from jaxclip.data.records import Fault
from jaxclip.data.stream import Skips, TooManySkipped, batches, crop_and_caption
from tests.support.pictures import png
from tests.support.sources import Memory

SIZE = 8


BROKEN = Pair(png()[:60], ("a truncated picture",), "broken.png")
EMPTY = Pair(png(), (" ", ""), "empty.png")


def read(
    sources: Any, count: int, rows: slice, batch_size: int = 6, limit: int = 0, **options: Any
) -> list[dict[str, Any]]:
    shared = {"size": SIZE, "batch_size": batch_size, "rows": rows, "seed": 5}
    stream = iter(batches(sources, skips=Skips(limit), **{**shared, **options}))
    return [next(stream) for _ in range(count)]


# Order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_index_comes_exactly_once_an_epoch_over_all_processes(processes):
    """31 pairs in batches of 6: 31 batches are 6 epochs, and epochs end within batches."""
    share = 6 // processes
    seen: dict[int, int] = {}
    for process in range(processes):
        for batch in read([Memory(31)], 31, slice(process * share, (process + 1) * share)):
            for position, (_, index) in zip(batch["position"], batch["index"], strict=True):
                assert position not in seen
                seen[int(position)] = int(index)
    assert sorted(seen) == list(range(186))
    epochs = [[seen[31 * epoch + i] for i in range(31)] for epoch in range(6)]
    assert all(sorted(epoch) == list(range(31)) for epoch in epochs)
    assert epochs[0] != sorted(epochs[0]) and epochs[0] != epochs[1]


def test_the_batch_does_not_depend_on_processes_or_threads():
    whole = read([Memory(31)], 3, slice(0, 6))
    halves = [read([Memory(31)], 3, slice(a, a + 3), threads=1) for a in (0, 3)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert batch["caption"] == first["caption"] + second["caption"]
        assert (batch["image"] == np.concatenate([first["image"], second["image"]])).all()


def test_the_position_can_be_gone_on_from():
    options = {"size": SIZE, "batch_size": 4, "rows": slice(0, 4), "seed": 1, "skips": Skips(0)}
    stream = iter(batches([Memory(10)], **options))
    for _ in range(3):
        next(stream)
    position = json.loads(json.dumps(stream.get_state()))  # it travels in a file
    expected = [next(stream) for _ in range(3)]
    other = iter(batches([Memory(10)], **options))
    other.set_state(position)
    for batch in expected:
        got = next(other)
        assert got["caption"] == batch["caption"] and (got["image"] == batch["image"]).all()


def test_another_seed_is_another_order():
    orders = [read([Memory(31)], 2, slice(0, 6), seed=seed)[0]["caption"] for seed in (1, 2)]
    assert orders[0] != orders[1]


def test_sources_come_by_weight_and_each_once_an_epoch():
    both = read([Memory(30), Memory(7)], 40, slice(0, 6), weights=[3, 1])
    index = np.concatenate([batch["index"] for batch in both])
    assert (index[:, 0] == 0).sum() == 180
    first_epoch = index[index[:, 0] == 1][:7, 1]
    assert sorted(first_epoch) == list(range(7))
    with pytest.raises(ValueError, match="weights: expected 1 positive numbers"):
        read([Memory(3)], 1, slice(0, 6), weights=[1, 2])


def test_seeds_are_not_one_order_an_epoch_apart():
    """31 pairs, 31 to an epoch: the second epoch of seed 0 was the first one of seed 1."""
    orders = {
        seed: np.concatenate(
            [b["index"][:, 1] for b in read([Memory(31)], 31, slice(0, 6), seed=seed)]
        )
        for seed in (0, 1)
    }
    assert (orders[0][31:62] == orders[1][:31]).sum() < 8


@pytest.mark.parametrize("wrong", [(), (3,), (3, 8)])
def test_no_batch_holds_a_pair_twice_also_after_skips(wrong):
    source = Memory(21, {i: BROKEN for i in wrong})
    for batch in read([source], 60, slice(0, 8), batch_size=8, limit=10**6):
        assert len({tuple(index) for index in batch["index"].tolist()}) == 8


def test_a_batch_that_the_usable_cannot_fill_is_refused():
    """20 pairs fill a batch of 20, 19 do not: repeated, one would count as its own negative."""
    with pytest.raises(ValueError, match=r"expected at most 19 rows a process, .* got 20"):
        read([Memory(20, {3: BROKEN})], 1, slice(0, 20), batch_size=20, limit=10**6)
    with pytest.raises(ValueError, match="batch_size: expected at most 20"):
        read([Memory(20)], 1, slice(0, 64), batch_size=64)


def test_a_small_set_in_a_mixture_is_told_once(caplog):
    with caplog.at_level(logging.WARNING):
        for batch in read([Memory(40), Memory(2)], 20, slice(0, 6)):
            small = [i for s, i in batch["index"].tolist() if s == 1]
            assert sorted(small) in ([0, 0, 1], [0, 1, 1])
    assert caplog.text.count("dataset 2 of 2 has 2 pairs") == 1


# What is unusable ---------------------------------------------------------------------------------


def test_the_unusable_is_counted_logged_and_skipped(caplog):
    skips = Skips(limit=10)
    options = {"size": SIZE, "batch_size": 5, "rows": slice(0, 5), "seed": 0, "skips": skips}
    with caplog.at_level(logging.WARNING):
        stream = iter(batches([Memory(12, {3: BROKEN, 8: EMPTY})], threads=1, **options))
        seen = np.concatenate([next(stream)["index"][:, 1] for _ in range(2)])
    assert sorted(seen) == [i for i in range(12) if i not in (3, 8)]
    assert skips.counts["broken picture"] >= 1 and skips.counts["empty caption"] >= 1
    assert "broken picture: broken.png" in caplog.text
    assert "empty caption: empty.png" in caplog.text


def test_processes_say_once_that_what_is_left_out_may_repeat_pairs(caplog):
    """Each moves its own later pairs up; of 8 pairs a batch of 8 then holds some twice."""
    source = Memory(8, {3: BROKEN, 5: BROKEN})
    with caplog.at_level(logging.WARNING):
        halves = [read([source], 6, rows, 8, limit=9) for rows in (slice(0, 4), slice(4, 8))]
    pairs = [
        np.concatenate([x["index"][:, 1] for x in batch]) for batch in zip(*halves, strict=True)
    ]
    assert any(len(set(batch)) < 8 for batch in map(np.ndarray.tolist, pairs))
    assert caplog.text.count("two processes may put one pair into a batch") == 2  # one a process
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read([Memory(20, {3: BROKEN})], 6, slice(0, 8), 8, limit=9)
    assert "skipped" in caplog.text and "two of them" not in caplog.text


def test_too_many_unusable_pairs_end_the_run():
    wrong = {i: BROKEN for i in range(0, 12, 2)}
    with pytest.raises(TooManySkipped, match="more than 2 pairs skipped: 3 times broken picture"):
        read([Memory(12, wrong)], 4, slice(0, 6), limit=2, threads=1)


def test_a_record_counts_once_however_often_it_is_met(caplog):
    """One missing of 20 ended a run in epoch 21 at --skip-limit 20."""
    skips = Skips(1)
    options = {"size": SIZE, "batch_size": 5, "rows": slice(0, 5), "seed": 0, "skips": skips}
    gone = Pair(b"", ("a",), "gone.png")
    stream = iter(batches([Memory(20, {7: gone})], **options))
    for _ in range(30 * 4):
        next(stream)
    assert skips.counts == {"broken picture": 1}
    assert len([line for line in caplog.messages if "gone.png" in line]) == 1


def test_two_sources_with_the_same_record_count_it_twice():
    skips = Skips(9)
    options = {"size": SIZE, "batch_size": 5, "rows": slice(0, 5), "seed": 0, "skips": skips}
    stream = iter(batches([Memory(6, {1: BROKEN}), Memory(6, {1: BROKEN})], **options))
    for _ in range(12):
        next(stream)
    assert skips.counts == {"broken picture": 2}


@pytest.mark.parametrize("more", [0, 6])
def test_a_source_without_anything_usable_ends_the_run_at_once(more):
    """It was read for ever, or to the limit: "1007 times empty caption"."""
    sources = [Memory(25, dict.fromkeys(range(25), EMPTY)), *([Memory(more)] if more else [])]
    of = " of dataset 1" if more else ""
    message = f"none of the 25 pairs{of} can be used: 25 times empty caption"
    with pytest.raises(TooManySkipped, match=message):
        read(sources, 40, slice(0, 6), limit=1000)


def test_a_fault_is_what_is_counted_and_named(caplog):
    skips = Skips(5)
    pair = Pair(png(), ("a",), "t.csv, line 3", Fault("bad row", "expected 2 columns, got 3"))
    assert crop_and_caption(pair, SIZE, np.random.default_rng(0), skips) is None
    assert skips.counts == {"bad row": 1}
    assert "bad row: t.csv, line 3: expected 2 columns, got 3 (1 so far)" in caplog.text


def test_a_position_after_skips_is_gone_on_from():
    options = {"size": SIZE, "batch_size": 4, "rows": slice(0, 4), "seed": 1}
    source = Memory(10, {2: BROKEN, 5: EMPTY})
    stream = iter(batches([source], skips=Skips(2), **options))
    for _ in range(9):  # beyond an epoch: the bad ones were met before
        next(stream)
    position = stream.get_state()
    expected = [next(stream)["caption"] for _ in range(6)]
    other = iter(batches([source], skips=Skips(2), **options))
    other.set_state(position)
    assert [next(other)["caption"] for _ in range(6)] == expected


# Pictures and captions ----------------------------------------------------------------------------


def test_a_square_of_the_resized_picture_is_drawn():
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, :, 0] = np.arange(40) * 6  # the red tells the place
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "PNG")
    rng = np.random.default_rng(0)
    crops = [random_crop(file.getvalue(), 10, rng) for _ in range(200)]
    assert {crop.shape for crop in crops} == {(10, 10, 3)}
    starts = {int(crop[0, 0, 0]) // 6 for crop in crops}
    assert min(starts) == 0 and max(starts) == 30  # from edge to edge
    assert len(starts) > 25


def test_one_of_several_captions_is_drawn_each_time():
    pair = Pair(png(), ("one", " two ", ""), "here")
    rng = np.random.default_rng(0)
    drawn = [crop_and_caption(pair, SIZE, rng, Skips(0))[1] for _ in range(40)]
    assert set(drawn) == {"one", "two"}


# Sources ------------------------------------------------------------------------------------------


def test_folder_with_captions_beside_the_pictures(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("first\nsecond\n")
    (tmp_path / "b.txt").write_text("")
    source = pairs.read_caption_folder(tmp_path)
    assert [pair.captions for pair in (source[0], source[1])] == [("first", "second"), ()]
    assert source[0].image == png()
    with pytest.raises(ValueError, match="no pictures with captions"):
        pairs.read_caption_folder(tmp_path / "..").entries and pairs.caption_class_folders(tmp_path)


def test_class_folders_give_captions_by_template(tmp_path):
    (tmp_path / "tabby_cat").mkdir()
    (tmp_path / "tabby_cat" / "1.JPG").write_bytes(png())
    (source,) = [pairs.caption_class_folders(tmp_path, ["a photo of a {}.", "a {}."])]
    assert source[0].captions == ("a photo of a tabby cat.", "a tabby cat.")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'image,caption\nx.png,"one, two"\nx.png,three\n'),
        ("t.tsv", "image\tcaption\nx.png\tone, two\nx.png\tthree\n"),
        ("t.jsonl", '{"image": "x.png", "caption": ["one, two", "three"]}\n'),
    ],
)
def test_tables_put_the_captions_of_one_picture_together(tmp_path, name, text):
    (tmp_path / "x.png").write_bytes(png())
    (tmp_path / name).write_text(text)
    source = pairs.read_caption_table(tmp_path / name)
    assert len(source) == 1 and source[0].captions == ("one, two", "three")
    assert source[0].image == png()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "file,caption\nx.png,one\n", "line 1: expected the fields 'image', 'caption'"),
        ("t.jsonl", '{"image": "x.png"\n', "line 1: expected JSON"),
        ("t.jsonl", "[1]\n", "line 1: expected a JSON object"),
        ("t.csv", "image,caption\n", "no pictures with captions"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        pairs.read_caption_table(tmp_path / name)


def test_a_picture_that_is_gone_is_a_broken_one(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\nx.png,one\n")
    skips = Skips(1)
    pair = pairs.read_caption_table(tmp_path / "t.csv")[0]
    assert crop_and_caption(pair, SIZE, np.random.default_rng(0), skips) is None
    assert skips.counts == {"broken picture": 1}


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_tar_shards_in_the_layout_of_webdataset(tmp_path, caplog):
    first = shard(
        tmp_path / "0.tar",
        {
            "00/1.jpg": png(1),
            "00/1.txt": b"one",
            "00/1.json": b'{"caption": "not this one"}',
            "00/2.json": b'{"caption": "two"}',
            "00/2.png": png(2),
            "00/3.txt": b"a caption without picture",
        },
    )
    second = shard(tmp_path / "1.tar", {"1.jpg": png(3), "1.json": b"no json"})
    source = TarShards([first, second])
    assert [source[i].captions for i in range(3)] == [("one",), ("two",), ()]
    assert [source[i].image for i in range(3)] == [png(1), png(2), png(3)]
    assert len(source) == 3 and "1 names without picture" in caplog.text


def test_a_damaged_shard_is_used_up_to_the_damage_and_says_so(tmp_path, caplog):
    path = shard(tmp_path / "0.tar", {f"{i}.png": png(i, 40, 40) for i in range(4)})
    content = bytearray(path.read_bytes())
    start = content.index(b"2.png")
    content[start : start + 300] = b"\xff" * 300
    path.write_bytes(content)
    source = TarShards([path])
    assert len(source) == 2 and "damaged" in caplog.text


def test_a_caption_of_tensorflow_datasets_is_told_and_not_replaced():
    source = pairs.TfdsPairs.__new__(pairs.TfdsPairs)
    source.names, source.image, source.caption, source.origin = None, "image", "text", "tiny, train"
    source.rows = [
        {"image": b"", "text": text} for text in (b"ok", b"K\xe4tzchen", [b"a", "b"], [b"a", 5])
    ]
    found = [source[i] for i in range(4)]
    assert [pair.captions for pair in found] == [("ok",), (), ("a", "b"), ()]
    assert "got byte 0xe4" in found[1].fault.detail and found[1].where == "tiny, train, row 1"
    assert found[3].fault.kind == "bad caption"


BUILDER = """
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)),
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["tabby_cat", "dog"])}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))
    def _split_generators(self, manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(5):
            picture = Image.fromarray(np.full((9, 12, 3), i, np.uint8))
            yield i, {"image": picture, "text": f"text {i}", "label": i % 2}
"""
READER = """
import sys
from pathlib import Path
import numpy as np
from jaxclip.data.pairs import TfdsPairs
from jaxclip.data.crops import random_crop
from made import Tiny

folder = Path(sys.argv[1])
Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
source = TfdsPairs("tiny", "train[:4]", folder, caption="text")
for i in range(len(source)):
    pixel = random_crop(source[i].image, 8, np.random.default_rng(0))[0, 0, 0]
    assert source[i].captions == (f"text {pixel}",)
labels = TfdsPairs("tiny", "train", folder, caption="label", template="a {}.")
print(len(source), sorted({labels[i].captions[0] for i in range(5)}))
assert "tensorflow" not in sys.modules
"""


def test_tensorflow_datasets_without_tensorflow(tmp_path):
    """In a process of its own, which shows at its end that TensorFlow was not imported."""
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "__init__.py").write_text(BUILDER)
    (tmp_path / "reader.py").write_text(READER)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "reader.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "4 ['a dog.', 'a tabby cat.']"
