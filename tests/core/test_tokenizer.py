"""The tokenizer gives the released ids and refuses what it cannot turn into a row."""

import gzip
import hashlib
import json
import random
import sys
import tracemalloc
import unicodedata
from html.entities import html5
from pathlib import Path

import numpy as np
import pytest

from experiments.lib.peers.parity_support import official_module
from jaxclip import tokenizer
from jaxclip.tokenizer import END_OF_TEXT, START_OF_TEXT, VOCAB_SIZE, decode, encode, tokenize
from tests.golden.make_tokenizer_golden import PARTS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokenizer.json").read_text())["rows"]
MERGES_SHA256 = "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"  # unpacked


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello World!", [3306, 1002, 256]),
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("a photo of a dog", [320, 1125, 539, 320, 1929]),
        ("", []),
    ],
)
def test_published_ids(text: str, ids: list[int]) -> None:
    row = tokenize(text)
    assert row.shape == (1, 77) and row.dtype == np.int32
    np.testing.assert_array_equal(row[0, : len(ids) + 2], [START_OF_TEXT, *ids, END_OF_TEXT])
    assert not row[0, len(ids) + 2 :].any()


def test_golden_ids_equal_the_official_ones() -> None:
    assert len(GOLDEN) > 300
    assert [text for text, ids in GOLDEN if encode(text) != ids] == []


def test_golden_ids_notice_case_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_clean", lambda text: " ".join(text.split()))
    assert any(encode(text) != ids for text, ids in GOLDEN if text.isascii() and "&" not in text)


def test_golden_ids_notice_one_missing_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = tokenizer._tables()
    merges = {pair: merged for pair, merged in tables.merges.items() if merged != 2368}  # cat
    monkeypatch.setattr(tokenizer, "_tables", lambda: tables._replace(merges=merges))
    tokenizer._chunk_ids.cache_clear()
    tokenizer._whole_words.cache_clear()
    differ = [text for text, ids in GOLDEN if encode(text) != ids]
    tokenizer._chunk_ids.cache_clear()
    tokenizer._whole_words.cache_clear()
    assert "a photo of a cat" in differ and "a photo of a dog" not in differ


def test_the_merges_file_holds_the_released_merges_only() -> None:
    packed = tokenizer._MERGES.read_bytes()
    assert packed[4:8] == bytes(4)  # no time stamp: the file comes out the same every time
    lines = gzip.decompress(packed)
    assert lines.count(b"\n") == VOCAB_SIZE - 2 - 512
    assert hashlib.sha256(lines).hexdigest() == MERGES_SHA256


def test_plain_text_is_cleaned_as_all_text_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way for printable ASCII gives what repairing and unescaping would have given."""
    dice = random.Random(1)
    letters = [chr(code) for code in [9, 10, 13, *range(32, 127)] if chr(code) != "&"]
    texts = ["".join(dice.choices(letters, k=dice.randint(0, 60))) for _ in range(5_000)]
    texts += [a + b for a in letters for b in letters]
    plain = tokenizer._patterns().plain
    assert all(plain.fullmatch(text) for text in texts)
    short = [tokenizer._clean(text) for text in texts]
    never = tokenizer._patterns()._replace(
        plain=type("Never", (), {"fullmatch": lambda *_: None})()
    )
    monkeypatch.setattr(tokenizer, "_patterns", lambda: never)
    assert short == [tokenizer._clean(text) for text in texts]


@pytest.mark.parametrize(
    "code", [0, 7, 8, 11, 12, 14, 27, 28, 31, 38, 127, 128, 0x85, 0xA0, 0x3000]
)
def test_other_text_is_not_taken_for_plain(code: int) -> None:
    assert not tokenizer._patterns().plain.fullmatch(f"a{chr(code)}b")


def test_rows_stand_in_the_order_of_the_texts() -> None:
    texts = ["a cat", "", "a dog"]
    rows = np.concatenate([tokenize(text) for text in texts])
    for kind in (list, tuple, np.array):
        np.testing.assert_array_equal(tokenize(kind(texts)), rows)
    assert tokenize([]).shape == (0, 77) and tokenize([]).dtype == np.int32
    assert tokenize([], context_length=5).shape == (0, 5)


def test_a_text_that_just_fits_is_not_cut() -> None:
    text = "cat " * 75
    np.testing.assert_array_equal(tokenize(text), tokenize(text, truncate=True))
    np.testing.assert_array_equal(tokenize(text)[0], [START_OF_TEXT, *[2368] * 75, END_OF_TEXT])


def test_a_text_that_is_too_long_is_named() -> None:
    with pytest.raises(
        ValueError,
        match=r"texts\[1\] \('dog.*\): expected at most 77 tokens.*got 78; .*truncate=True",
    ):
        tokenize(["a cat", "dog " * 76])


def test_truncation_puts_the_end_mark_in_the_last_place() -> None:
    row = tokenize("dog " * 100, truncate=True)[0]
    np.testing.assert_array_equal(row, [START_OF_TEXT, *[1929] * 75, END_OF_TEXT])
    np.testing.assert_array_equal(tokenize("a dog", 2, truncate=True), [[49406, 49407]])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "got NoneType"),
        (b"a cat", "got bytes"),
        (7, "got int"),
        ({"a cat": 1}, "got dict"),
        (["a cat", None], r"texts\[1\]: expected a str, got NoneType"),
        ([["a cat"]], r"texts\[0\]: expected a str, got list"),
        (np.zeros(3), r"texts\[0\]: expected a str, got float"),
    ],
)
def test_what_is_not_text_is_refused(texts: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize(texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [1, 0, -3, 7.5, "77", True, None])
def test_a_context_length_without_room_for_the_marks_is_refused(length: object) -> None:
    with pytest.raises(ValueError, match="context_length"):
        tokenize("a cat", length)  # type: ignore[arg-type]


def test_encode_refuses_what_is_not_text() -> None:
    with pytest.raises(ValueError, match="text: expected a str, got bytes"):
        encode(b"a cat")  # type: ignore[arg-type]


def test_marks_in_the_text_become_the_marks() -> None:
    assert encode("a <|endoftext|> b") == [320, END_OF_TEXT, 321]
    assert encode("<|STARTOFTEXT|>") == [START_OF_TEXT]


def test_html_is_unescaped_twice_and_white_space_collapses() -> None:
    """ftfy undoes a first escape on its own where the text holds no "<"."""
    assert (
        encode("tom &amp;amp; jerry") == encode("  Tom\t&\n\u3000JERRY ") == encode("tom & jerry")
    )


def test_decode_undoes_encode() -> None:
    for text in ("a photo of a cat", "naïve café", "一 张 猫", "x 🐈 y", "it 's 7 7 !"):
        assert decode(encode(text)) == text + " "
    for text, ids in GOLDEN:
        assert encode(decode(ids)) == encode(decode(encode(decode(ids)))), text


def test_decode_spells_marks_and_broken_characters() -> None:
    assert decode(tokenize("Hi!", 5)[0]) == "<|startoftext|>hi ! <|endoftext|>!"
    assert decode(encode("🐈")[:1]).startswith("\ufffd")
    assert decode([]) == ""


@pytest.mark.parametrize("ids", [[-1], [VOCAB_SIZE], [1.0], ["a"], [320, None]])
def test_decode_refuses_what_is_not_an_id(ids: list) -> None:
    with pytest.raises(ValueError, match=r"ids\[\d\]: expected a whole number .*, got "):
        decode(ids)


def test_every_id_has_its_own_bytes() -> None:
    pieces = tokenizer._tables().pieces
    assert len(pieces) == len(set(pieces)) == VOCAB_SIZE


def test_a_long_run_of_letters_does_not_cost_its_square() -> None:
    """200,000 letters take a second; one merge at a time, 50,000 already take a minute."""
    text = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=200_000))
    with pytest.raises(ValueError, match="tokens"):
        tokenize(text)


def test_the_cache_is_bounded() -> None:
    assert tokenizer._chunk_ids.cache_info().maxsize == 1 << 16


def _names_and_characters() -> list[str]:
    """Every assigned character outside the private planes, with its name and between letters."""
    texts = []
    for code in range(0x20000):
        character = chr(code)
        name = unicodedata.name(character, "")
        if name and not name.startswith(("CJK UNIFIED", "HANGUL SYLLABLE", "TANGUT", "CUNEIFORM")):
            texts += [f"{name.title()} {character}", f"x{character}y{character}{character}"]
        elif code % 7 == 0 or code < 0x300:
            texts.append(f"{character} a{character}")
    return texts


def _mixtures(count: int) -> list[str]:
    dice = random.Random(2)
    entities = [f"&{name}" for name in html5] + [f"&amp;{name}" for name in html5]
    numeric = [f"&#{dice.randrange(0x110000)};" for _ in range(2_000)]
    emoji = [chr(code) for code in range(0x1F300, 0x1FAFF)] + ["\u200d", "\ufe0f", "\U0001f3fd"]
    anything = [chr(dice.randrange(sys.maxunicode + 1)) for _ in range(5_000)]
    pools = [PARTS, PARTS, entities, numeric, emoji, anything, [chr(code) for code in range(256)]]
    texts = [*entities, *numeric]
    for _ in range(count):
        parts = dice.choices(dice.choice(pools), k=dice.randint(1, 6))
        parts += dice.choices(dice.choice(pools), k=dice.randint(1, 8))
        dice.shuffle(parts)
        texts.append("".join(parts))
    return texts


@pytest.mark.parity
def test_ids_and_text_equal_the_official_ones_live() -> None:
    official = official_module("simple_tokenizer").SimpleTokenizer()
    texts = [*_names_and_characters(), *_mixtures(60_000)]
    assert len(set(texts)) >= 100_000
    departed = []
    for text in texts:
        ids = official.encode(text)
        if encode(text) != ids or decode(ids) != official.decode(ids):
            departed.append(text)
    assert departed == []


@pytest.mark.parity
def test_decode_equals_the_official_one_on_random_ids() -> None:
    official = official_module("simple_tokenizer").SimpleTokenizer()
    for ids in np.random.default_rng(0).integers(0, VOCAB_SIZE, (2_000, 20)).tolist():
        assert decode(ids) == official.decode(ids)


def test_a_word_that_is_one_token_is_what_its_merges_come_to() -> None:
    """Of all 34,483 of them, so that looking a word up gives what joining its pairs gives."""
    words = tokenizer._whole_words()
    assert len(words) > 30_000
    for word, number in words.items():
        assert tokenizer._merge(word.encode()) == [number], word
        if word.isalpha():
            assert tokenizer._patterns().split.findall(word) == [word]


def _odd_words(dice: random.Random) -> list[str]:
    """Words whose merges reach far: runs, two letters, words of the vocabulary strung together."""
    known = [word for word in tokenizer._whole_words() if word.isalpha()]
    kinds = ("a", "ab", "abcdefghijklmnopqrstuvwxyz", "éñü漢字かな", "!?.,-_=*#/w<>", known)
    return ["".join(dice.choices(dice.choice(kinds), k=dice.randint(1, 150))) for _ in range(150)]


def test_long_words_are_merged_in_pieces_to_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(2)
    for word in (text.encode() for text in _odd_words(dice)):
        monkeypatch.setattr(tokenizer, "_PIECE", dice.choice((1, 3, 16, 50)))
        monkeypatch.setattr(tokenizer, "_SEAM", dice.choice((1, 8)))
        assert tokenizer._merge_long(word, sys.maxsize) == tokenizer._merge(word)
        fit = dice.randint(0, 80)
        assert tokenizer._merge_long(word, fit)[:fit] == tokenizer._merge(word)[:fit]


def test_pieces_that_are_only_put_together_give_other_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_append", lambda ids, more, ends: ids.extend(more))
    monkeypatch.setattr(tokenizer, "_PIECE", 3)
    assert tokenizer._merge_long(b"photograph", sys.maxsize) != tokenizer._merge(b"photograph")


@pytest.mark.parametrize("letter", ["a", "é", "7"])
def test_a_word_of_ten_million_letters_is_cut_at_once_or_refused(letter: str) -> None:
    """The ids are those of a shorter one, which needs no pieces; it took 38 s and 2 GB."""
    text = letter * 10_000_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"at most 1,000,000 characters, got 10,000,000"):
            encode(text)
        with pytest.raises(ValueError, match=r"^texts\[0\] .{,60}at most 1,000,000 characters"):
            tokenize(text)
        row = tokenize(text, truncate=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(row, tokenize(letter * 2_000, truncate=True))
    assert peak < 100e6


def test_a_long_text_is_cut_only_where_enough_tokens_are_before_it() -> None:
    text = " " * 2_000_000 + "a cat"
    with pytest.raises(
        ValueError, match=r"expected 75 tokens in its first 1,000,000 characters, got 0"
    ):
        tokenize(text, truncate=True)


def test_long_chunks_are_not_remembered() -> None:
    tokenizer._chunk_ids.cache_clear()
    encode("a" * 10_000 + " cat")
    assert tokenizer._chunk_ids.cache_info().currsize == 1


@pytest.mark.parametrize(
    "text",
    [
        "&" + "amp;" * 200_000,
        "\uff06" + "amp;" * 200_000,  # a wide ampersand
        "&a\x1b[1mmp;" + "a\x1b[1mmp;" * 100_000,  # joined once the terminal's codes are out
    ],
)
def test_html_escapes_without_end_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HTML escapes of at most 8 levels"):
        encode(text)


def test_html_escapes_of_some_levels_are_undone() -> None:
    deep = "&amp;amp;amp;amp;lt; cat "
    assert encode(deep * 1_000) == encode("< cat " * 1_000)
    # from a line with a bracket on two levels are undone, as in the released tokenizer
    kept = encode("<b> " + "&amp;amp;amp; cat " * 1_000)
    once = encode("<b> &amp;amp;amp; cat")
    assert kept == once + 999 * once[len(encode("<b>")) :] and len(once) == 7


@pytest.mark.parametrize(("number", "letter"), [("0" * 5_000 + "65", "A"), ("1" * 5_000, "\ufffd")])
def test_numbers_of_html_may_have_any_count_of_digits(number: str, letter: str) -> None:
    assert encode(f"&#{number};") == encode(letter)


def test_half_of_a_surrogate_pair_is_a_replacement_character() -> None:
    assert encode("a \udcff cat") == encode("a \ufffd cat")


@pytest.mark.parametrize("seed", range(4))
def test_any_text_has_ids_or_is_refused(seed: int) -> None:
    dice = random.Random(seed)
    strange = ["&", "&amp;", "&#", "&#x", ";", "<", "\x1b[", "\udcff", "Ã©", "\u0301", "0"]
    for _ in range(200):
        letters = [*strange, *(chr(dice.randrange(sys.maxunicode)) for _ in range(10))]
        text = "".join(dice.choices(letters, k=dice.randint(0, 300)))
        assert all(0 <= token < VOCAB_SIZE for token in encode(text))
        assert tokenize(text, truncate=True).shape == (1, 77)
