"""Tables and texts as people have them: the rows as they stand, or one line that says which not."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from pathlib import Path

import pytest

from jaxclip.data import pairs
from jaxclip.data.classes import align_labels
from jaxclip.data.labelled import NO_LABEL, Labelled, open_labelled
from jaxclip.data.records import parse_captions, parse_label, parse_path
from jaxclip.data.spec import parse_spec
from jaxclip.data.tables import table_rows
from tests.support.pictures import png

SEPARATORS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e")
QUOTES = [
    '"hello world, a sign',
    "a dog",
    "a cat",
    '"The End" says the sign',
    "bird",
]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def captions(source: pairs.CaptionedFiles) -> list[tuple[str, ...]]:
    return [texts for _, texts in source.entries]


def details(source: pairs.CaptionedFiles) -> list[str]:
    return [f"{where}: {fault.detail}" for where, fault in source.bad]


# Text ---------------------------------------------------------------------------------------------


def test_a_tsv_has_no_quoting(tmp_path):
    """Read as CSV, these five rows were two."""
    rows = "".join(f"{i}.png\t{caption}\n" for i, caption in enumerate(QUOTES))
    source = pairs.read_caption_table(write(tmp_path / "quotes.tsv", "image\tcaption\n" + rows))
    assert captions(source) == [(caption,) for caption in QUOTES] and source.bad == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_of_excel_is_read(tmp_path, encoding, end):
    text = f"image,caption{end}0.png,ein Kätzchen{end}"
    source = pairs.read_caption_table(write(tmp_path / "excel.csv", text.encode(encoding)))
    assert captions(source) == [("ein Kätzchen",)]


def test_a_line_of_json_may_have_a_mark_before_it(tmp_path):
    text = '\ufeff{"image": "0.png", "caption": "a"}\n\n{"image": "1.png", "caption": "b"}\n \n'
    assert captions(pairs.read_caption_table(write(tmp_path / "t.jsonl", text))) == [("a",), ("b",)]


def test_a_table_with_semicolons_is_refused_with_its_header(tmp_path):
    path = write(tmp_path / "t.csv", "image;caption\n0.png;a cat, a dog\n")
    with pytest.raises(ValueError, match="with commas between them, got 'image;caption'"):
        pairs.read_caption_table(path)


@pytest.mark.parametrize("separator", SEPARATORS)
def test_other_separators_never_split_a_caption(tmp_path, separator):
    text = f"one{separator}caption"
    write(tmp_path / "x.png", png())
    write(tmp_path / "x.txt", text)
    assert pairs.read_caption_folder(tmp_path)[0].captions == (text,)
    assert captions(
        pairs.read_caption_table(write(tmp_path / "t.csv", f"image,caption\nx.png,{text}\n"))
    ) == [(text,)]
    assert captions(
        pairs.read_caption_table(write(tmp_path / "t.tsv", f"image\tcaption\nx.png\t{text}\n"))
    ) == [(text,)]
    line = json.dumps({"image": "x.png", "caption": text}, ensure_ascii=False)
    if separator >= " ":  # JSON has no raw control characters
        assert captions(pairs.read_caption_table(write(tmp_path / "t.jsonl", line))) == [(text,)]
    write(tmp_path / "classnames.txt", f"tabby{separator}cat\nowl\n")
    source = open_labelled(parse_spec(str(write(tmp_path / "l.csv", "image,label\nx.png,1\n"))))
    assert source.names == (f"tabby{separator}cat", "owl")


def test_the_mark_is_no_part_of_the_first_class(tmp_path):
    """It lost the first class, and the others' 100 % were the answer."""
    write(tmp_path / "classnames.txt", "cat\ndog\n".encode("utf-8-sig"))
    path = write(tmp_path / "l.csv", "image,label\n0.png,cat\n1.png,dog\n")
    source = open_labelled(parse_spec(str(path)))
    assert source.names == ("cat", "dog") and [source[i].label for i in range(2)] == [0, 1]


@pytest.mark.parametrize("text", ["cat\n\ndog\n", "\ncat\ndog\n", "cat\n \ndog"])
def test_an_empty_line_among_classes_is_refused_as_it_renumbers_them(tmp_path, text):
    path = write(tmp_path / "l.csv", "image,label\na.png,1\n")
    write(tmp_path / "classnames.txt", text)
    with pytest.raises(
        ValueError, match=r"classnames\.txt, line [12]: expected a class, got an emp"
    ):
        open_labelled(parse_spec(str(path)))
    write(tmp_path / "classnames.txt", "cat\ndog\n\n \n")
    assert open_labelled(parse_spec(str(path))).names == ("cat", "dog")


def test_a_name_of_two_classes_is_refused_where_the_data_use_it(tmp_path):
    path = write(tmp_path / "l.csv", "image,label\na.png,crane\nb.png,dog\n")
    write(tmp_path / "classnames.txt", "crane\ncrane\ndog\n")
    with pytest.raises(ValueError, match="got 'crane' 2 times; number the classes"):
        open_labelled(parse_spec(str(path)))
    write(path, "image,label\na.png,1\nb.png,2\n")
    source = open_labelled(parse_spec(str(path)))
    assert [source[i].label for i in range(2)] == [1, 2]


def test_names_go_before_places(tmp_path):
    """Classes named 1, 2, 3: label 1 is the first of them."""
    path = write(tmp_path / "l.csv", "image,label\na.png,1\nb.png,3\n")
    bare = open_labelled(parse_spec(str(path)))
    by_name, by_place = (
        align_labels(bare, ["1", "2", "3"]),
        align_labels(bare, ["a", "b", "c", "d"]),
    )
    assert [by_name[i].label for i in range(2)] == [0, 2]
    assert [by_place[i].label for i in range(2)] == [1, 3]
    write(tmp_path / "classnames.txt", "1\n2\n3\n")
    named = open_labelled(parse_spec(str(path)))
    assert [named[i].label for i in range(2)] == [0, 2]
    write(tmp_path / "classnames.txt", "cat\n2\ndog\nowl\n")
    places = open_labelled(parse_spec(str(path)))
    assert [places[i].label for i in range(2)] == [1, 3]
    negative = align_labels(bare, ["-1", "1", "3"])
    assert [negative[i].label for i in range(2)] == [1, 2]
    digits = align_labels(bare, [str(i) for i in range(10)])  # names and places at once
    assert [digits[i].label for i in range(2)] == [1, 3]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "classnames.txt"])
def test_a_list_in_another_encoding_is_refused_by_name_and_byte(tmp_path, name):
    write(tmp_path / "l.csv", "image,label\n0.png,1\n")
    path = write(tmp_path / name, "image,caption\n0.png,K\xe4tzchen\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name}: expected UTF-8 text .*got byte 0xe4"):
        if name == "classnames.txt":
            open_labelled(parse_spec(str(tmp_path / "l.csv")))
        else:
            pairs.read_caption_table(path)


def test_a_caption_file_in_another_encoding_costs_its_picture_only(tmp_path):
    for name, text in (("a", b"a cat"), ("b", b"K\xe4tzchen"), ("c", "猫".encode("utf-16"))):
        write(tmp_path / f"{name}.png", png())
        write(tmp_path / f"{name}.txt", text)
    source = pairs.read_caption_folder(tmp_path)
    assert captions(source) == [("a cat",), ("猫",)] and len(source) == 3
    assert source[2].fault.kind == "bad caption" and source[2].where.endswith("b.txt")
    assert "expected UTF-8 text" in source[2].fault.detail
    write(tmp_path / "a.txt", "a\0c\0a\0t\0")  # UTF-16 without its mark
    assert "null byte" in pairs.read_caption_folder(tmp_path)[1].fault.detail


# Rows ---------------------------------------------------------------------------------------------

DEEP = "[" * 100_000
BAD_LINES = {
    '{"image": "x.png", "caption": 5}': "got a number",
    '{"image": "x.png", "caption": null}': "got null",
    '{"image": "x.png", "caption": [1, 2]}': "got a list with a number",
    '{"image": "x.png", "caption": ["a", null]}': "got a list with null",
    '{"image": "x.png", "caption": {"en": "a"}}': "got an object",
    '{"image": "x.png", "caption": true}': "got true or false",
    '{"image": 5, "caption": "a"}': "expected a file name, got a number",
    '{"image": "", "caption": "a"}': "expected a file name, got an empty text",
    '{"image": "x\\u0000.png", "caption": "a"}': "null byte",
    '{"image": "x.png", "caption": "\\ud800"}': "half a character (U+D800)",
    '{"image": "x.png"}': "expected the fields 'image', 'caption', got 'image'",
    '{"image": "x.png", "caption": ' + DEEP: "nested too deeply",
    '{"image": "x.png", "caption": ' + "9" * 5000 + "}": "expected JSON",
    '{"image": "x.png"': "expected JSON",
    "[1]": "expected a JSON object",
}


@pytest.mark.parametrize(("line", "says"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_line_of_json_costs_itself_only(tmp_path, line, says):
    good = '{"image": "g.png", "caption": "good"}'
    source = pairs.read_caption_table(write(tmp_path / "t.jsonl", f"{good}\n{line}\n{good}\n"))
    assert captions(source) == [("good", "good")] and len(source) == 2
    assert source[1].fault.kind == "bad row" and source[1].where == f"{tmp_path}/t.jsonl, line 2"
    assert says in source[1].fault.detail
    with pytest.raises(ValueError, match=r"none of its 1 records can be used; .*t.jsonl, line 1"):
        pairs.read_caption_table(write(tmp_path / "t.jsonl", line))


BAD_ROWS = {
    "g.png," + "x" * 200_000: "field larger than field limit",
    'g.png,"an open quote': "a quote that is not closed",
    "g.png,one,two": "expected 2 columns, got 3",
    "g.png": "expected 2 columns, got 1",
    "g.png,a\0b": "null byte",
    ",a": "expected a file name",
}


@pytest.mark.parametrize(("row", "says"), BAD_ROWS.items(), ids=range(len(BAD_ROWS)))
@pytest.mark.parametrize("last", [False, True])
def test_a_bad_row_costs_itself_only(tmp_path, row, says, last):
    """An open quote took all rows behind it for one caption."""
    after = [] if last else ["2.png,two", '3.png,"three, ""3"""', '4.png,"fo\nur"', "", ",,"]
    text = "\n".join(["image,caption", "1.png,one", row, *after])
    source = pairs.read_caption_table(write(tmp_path / "t.csv", text))
    expected = [("one",)] if last else [("one",), ("two",), ('three, "3"',), ("fo\nur",)]
    assert captions(source) == expected
    (told,) = details(source)
    assert told.startswith(f"{tmp_path}/t.csv, line 3: ") and says in told


def test_open_quotes_of_all_kinds_leave_the_others_as_they_are(tmp_path):
    rows = ['a,"x', 'b,"y"z', "c,d", 'e,"f', 'g,"h"', 'i,j"k']
    source = pairs.read_caption_table(
        write(tmp_path / "t.csv", "image,caption\n" + "\n".join(rows))
    )
    assert captions(source) == [("yz",), ("d",), ("h",), ('j"k',)]
    assert [told.split(": ")[0][-6:] for told in details(source)] == ["line 2", "line 5"]


def test_a_header_that_names_a_column_twice_is_refused(tmp_path):
    for name, apart in (("t.csv", ","), ("t.tsv", "\t")):
        text = apart.join(["image", "caption", "caption"]) + "\n" + apart.join("abc")
        with pytest.raises(ValueError, match="line 1: expected one field 'caption', got 2"):
            pairs.read_caption_table(write(tmp_path / name, text))


def test_columns_of_no_interest_do_no_harm(tmp_path):
    text = "id,id, image ,caption\n1,2,x.png,a\n1,2,y.png,b,,\n"
    assert captions(pairs.read_caption_table(write(tmp_path / "t.csv", text))) == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[1]", "a list"),
        ("{}", "an object"),
        ("1.5", "a number"),
        ("true", "true"),
        ('" "', "empty"),
    ],
)
def test_a_bad_class_costs_itself_only(tmp_path, value, says):
    lines = '{"image": "a.png", "label": 1.0}\n{"image": "b.png", "label": ' + value + "}\n"
    write(tmp_path / "classnames.txt", "cat\ndog\n")
    source = open_labelled(parse_spec(str(write(tmp_path / "t.jsonl", lines))))
    assert len(source) == 2 and source[0].label == 1 and source[1].label == NO_LABEL
    assert source[1].fault.kind == "bad row" and says in source[1].fault.detail


def test_labels_that_only_look_like_numbers_are_names(tmp_path):
    text = "image,label\na.png,--5\nb.png,٣\nc.png," + "9" * 5000 + "\n"
    source = open_labelled(parse_spec(str(write(tmp_path / "t.csv", text))))
    assert len(source.names) == 3


# Fuzz ---------------------------------------------------------------------------------------------

PIECES = ["image", "caption", "label", ",", "\t", ";", '"', '""', "\n", "\r\n", "\r", "\0", "x.png"]
PIECES += [
    "{",
    "}",
    "[",
    "]",
    ":",
    "5",
    "null",
    "\\ud800",
    "\u2028",
    "\ufeff",
    " ",
    "ä",
    "-",
    "1e999",
]


def read_labels(path: Path) -> Labelled:
    return open_labelled(parse_spec(str(path)))


def mutated(rng: random.Random, text: bytes) -> bytes:
    content = bytearray(text)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(content) + 1)
        new = rng.choice([rng.choice(PIECES).encode(), rng.randbytes(rng.randrange(3))])
        content[at : at + rng.randrange(4)] = new
    return bytes(content)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "x.txt", "classnames.txt"])
def test_any_text_gives_records_or_a_value_error(tmp_path, name):
    rng = random.Random(name)
    write(tmp_path / "x.png", png())
    write(tmp_path / "l.csv", "image,label\nx.png,1\nx.png,cat\n")
    apart = "\t" if name == "t.tsv" else ","
    row = f'x.png{apart}"a ""cat"", \n a dog"\n' if name != "t.jsonl" else ""
    lines = '{"image": "x.png", "caption": ["a"], "label": 3}\n' * 3
    whole = (f"image{apart}caption{apart}label\n" + row * 4 if row else lines).encode()
    for i in range(400):
        loose = "".join(rng.choices(PIECES, k=rng.randrange(60))).encode()
        path = write(tmp_path / name, loose if i % 4 == 0 else mutated(rng, whole))
        if name == "x.txt":
            reads = [(pairs.read_caption_folder, tmp_path)]
        elif name == "classnames.txt":
            reads = [(read_labels, tmp_path / "l.csv")]
        else:
            reads = [(pairs.read_caption_table, path), (read_labels, path)]
        for read, where in reads:
            try:
                source = read(where)
                records = [source[i] for i in range(len(source))]
            except ValueError as error:
                assert str(error)
                continue
            for record in records:
                assert all(isinstance(x, str) for x in getattr(record, "captions", ()))


def test_open_quotes_everywhere_take_bounded_time_and_memory(tmp_path):
    path = write(tmp_path / "t.csv", "image,caption\n" + 'x.png,"open\n"\n,"\n' * 20_000)
    tracemalloc.start()
    rows = list(table_rows(path, ("image", "caption")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) > 20_000 and peak < 100 * path.stat().st_size


def test_many_captions_of_one_picture_take_time_in_proportion(tmp_path):
    path = write(tmp_path / "t.csv", "image,caption\n" + "x.png,a\n" * 50_000)
    start = time.process_time()
    (texts,) = captions(pairs.read_caption_table(path))
    assert len(texts) == 50_000
    assert time.process_time() - start < 4  # 20 s where each line copied those before it


def test_long_names_of_fields_are_shortened_in_the_message(tmp_path):
    path = write(tmp_path / "t.jsonl", json.dumps({"k" * 10**6: 1}) + "\n")
    ((_, why),) = table_rows(path, ("image", "caption"))
    assert isinstance(why, str) and len(why) < 400


@pytest.mark.parametrize("parse", [parse_captions, parse_label, parse_path])
def test_any_value_is_parsed_or_refused(parse):
    values = [None, True, 1, 1.5, float("nan"), float("inf"), "", "a", "\0", "\ud800", [], {}]
    for value in [*values, *([value] for value in values), 10**30, -(10**30)]:
        try:
            parse(value)
        except ValueError as error:
            assert str(error).startswith("expected")
