"""Make `tokenizer.json` and, with --merges, the merges file of the package, from the official code.

Needs the `parity` extra. From the root of the repository:

    python -m tests.golden.make_tokenizer_golden
    python -m tests.golden.make_tokenizer_golden --merges jaxclip/data_files/bpe_merges.txt.gz

Made with clip-anytorch 2.6.0, ftfy 6.3.1, regex 2026.11.15. Both files come
out the same every time.
"""

import argparse
import gzip
import json
import random
from importlib.metadata import version
from pathlib import Path

from experiments.lib.peers.parity_support import official_module

GOLDEN = Path(__file__).with_name("tokenizer.json")

PLAIN = """
Hello World!
a photo of a cat
a photo of a dog
a diagram
A PHOTO OF A CaT.
the man's dog isn't here; they're late, we've gone, I'll stay, I'm fine, he'd go
THE MAN'S DOG ISN'T HERE; THEY'RE LATE, WE'VE GONE, I'LL STAY, I'M FINE, HE'D GO
o'clock 'tis rock'n'roll y'all's 'Sup 'rest 'llama
0 1 10 2024 3.14159 1,000,000 1e-5 0x7f 50% $9.99 #1 2nd
a photo of a {}, a type of pet.
http://example.org/a/b?c=d&e=f#g
user@example.org (call +1-555-0100)
hyphen-ated under_scored slash/ed back\\slashed "quoted" 'quoted' `ticked`
... --- *** !!! ??? ?! ;) :-) <3 ^_^ ~~ ||| [[]] {{}} (())
internationalization antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
x
!
</w> a</w> </w>a
""".strip().splitlines()

MARKS = """
<|startoftext|>
<|endoftext|>
a <|endoftext|> b
a<|endoftext|>b
<|ENDOFTEXT|> <|StartOfText|>
<|endoftext|
<|end of text|>
<|endoftext|><|startoftext|>!!
&lt;|endoftext|&gt;
<|\u017ftartoftext|>
""".strip().splitlines()

ENTITIES = """
Tom &amp; Jerry
Tom &amp;amp; Jerry
Tom &amp;amp;amp; Jerry
Tom &amp;amp;amp;amp; Jerry
&lt;b&gt;bold&lt;/b&gt;
<b>caf&eacute;</b> &EACUTE; &Eacute;
&#65;&#x42;&#x1F600; &#0; &#xD800; &#128; &#150; &#xFFFF; &#1114112; &#10;
&nbsp;&nbsp;a&nbsp;b&nbsp; &amp;nbsp; &ensp;x&emsp;y&thinsp;z
&notit; &not &copy2024 &copy; &unknown; & &; &#; &#x; AT&T R&D
&hellip; &mdash; &ldquo;x&rdquo; &rsquo;s
""".strip().splitlines()

UNICODE = """
na\u00efve caf\u00e9 \u00dcber stra\u00dfe STRASSE \u1e9e \u0130stanbul \u0131s\u0131 \u017fhip
e\u0301 \u00e9 A\u030a \u212b \u212a \u2126 \ufb01sh \ufb03 \ufb06
\u201ccurly\u201d \u2018single\u2019 it\u2019s don\u02bct \u00abguillemets\u00bb
it'\u017f 'K \u212aelvin we'\u1e3de
\uff28\uff45\uff4c\uff4c\uff4f\uff01 \uff11\uff12\uff13 \uff76\uff9e\u3000\u5168\u89d2
\u4e00\u5f20\u732b\u7684\u7167\u7247 \u306d\u3053\u306e\u5199\u771f \uace0\uc591\uc774 \uc0ac\uc9c4
\u0444\u043e\u0442\u043e \u041a\u041e\u0422\u0410 \u03c6\u03c9\u03c4\u03bf
\u0393\u0391\u03a4\u0391\u03a3 \u03c2
\u0635\u0648\u0631\u0629 \u0642\u0637\u0629 \u05ea\u05de\u05d5\u05e0\u05d4
\u0939\u093f\u0928\u094d\u0926\u0940
\u0661\u0662\u0663 \u0967\u0968 \u00b2\u00b3\u00bc \u2160\u2171 \u2460 \u3007
\U0001f600\U0001f408\u200d\u2b1b \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7
\u2764\ufe0f 1\ufe0f\u20e3 \U0001f44d\U0001f3fd
\u00e2\u20ac\u2122 caf\u00c3\u00a9 \u00f0\u0178\u02dc\u20ac l\u2019\u00c3\u00a9t\u00c3\u00a9
\u00c3\u00a0 la carte
\ufeffbom \u200bzero\u200bwidth soft\u00adhyphen \u2060joiner \u202ertl\u202c
\ufffd \ufffe \uffff \U0010ffff \ue000 \ud800x \udc00
\U0001d400\U0001d41b \U00010400 \U0001f170 \u24d0\u24b6
""".strip().splitlines()

SPACES = [
    "",
    " ",
    "\t\n",
    "  two  spaces  ",
    "a\tb\nc\rd\r\ne\ff\vg",
    "a\x00b\x07c\x08d\x0be\x0cf\x0eg\x1bh\x1ci\x1dj\x1ek\x1fl\x7fm",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "a\x80b\x85c\x99d\xa0e\u1680f\u180eg\u2000h\u2028i\u2029j\u202fk\u205fl\u3000m",
    "\x1c\x1d\x1e\x1f",
    "\u3000a\u3000",
]

WORDS = """
a cat dog Photo OF the quick's n't 'S 'RE 42 7 . , ! - _ ' " & ; < > | # / ( )
&amp; &amp;amp; &lt; &#39; <|endoftext|> <|startoftext|> \u00e9 \u00c3\u00a9 \u2019 \u0130
\u732b \U0001f408 \u200d \u0301 \ufb01 \uff21 \u0661 \u017f
"""
PARTS = [*WORDS.split(), *[" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\x00", "\x1c", "\x85"]]


def strings() -> list[str]:
    """The golden texts: chosen ones, then 250 random mixtures of their parts."""
    dice = random.Random(0)
    mixtures = ["".join(dice.choices(PARTS, k=dice.randint(2, 24))) for _ in range(250)]
    return [*PLAIN, *MARKS, *ENTITIES, *UNICODE, *SPACES, *mixtures]


def write_golden() -> None:
    official = official_module("simple_tokenizer").SimpleTokenizer()
    rows = [[text, official.encode(text)] for text in strings()]
    versions = {name: version(name) for name in ("clip-anytorch", "ftfy", "regex")}
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)  # ASCII only
    GOLDEN.write_text(f'{{"made_with": {json.dumps(versions)},\n"rows": [\n{lines}\n]}}\n')
    print(f"{GOLDEN}: {len(rows)} texts")


def write_merges(target: Path) -> None:
    source = Path(str(official_module("simple_tokenizer").default_bpe()))
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 49_152 - 256 - 2 + 1]  # the first line is a header; the rest is never used
    packed = "".join(line + "\n" for line in merges).encode("utf-8")
    target.write_bytes(gzip.compress(packed, compresslevel=9, mtime=0))
    print(f"{target}: {len(merges)} merges")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--merges", type=Path, help="write the merges here instead")
    arguments = parser.parse_args()
    if arguments.merges:
        write_merges(arguments.merges)
    else:
        write_golden()
