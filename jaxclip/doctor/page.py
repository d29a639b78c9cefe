"""docs/pitfalls.md from the table of faults: python -m jaxclip.doctor.page > docs/pitfalls.md."""

from jaxclip.doctor.faults import FAULTS
from jaxclip.doctor.pitfall import Pitfall

HEAD = """\
# Pitfalls: what goes wrong in implementations of CLIP

`jaxclip doctor diagnose` tries these faults on the spot and names the one that explains what
another program computed. This page is made from its table, `jaxclip/doctor/faults.py`:

```
python -m jaxclip.doctor.page > docs/pitfalls.md
```

```
jaxclip doctor probe --model ViT-B/32 --out probe.npz
jaxclip doctor probe --script torch
jaxclip doctor diagnose probe.npz theirs.npz --model ViT-B/32
```

More keys in `theirs.npz` give sharper answers: with `pixels` and `tokens` preprocessing is judged
on its own, with `image_hidden` and `text_hidden` the first block that departs is known. What
float16 and bfloat16 rounding do is no fault, and is said so.
"""
PARTS = {
    "pixels": "Pictures to pixels",
    "tokens": "Texts to tokens",
    "tower": "Towers",
    "logits": "Logits",
}
STAGES = {
    "pixels": "preprocessing",
    "tokens": "the tokenizer",
    "vit": "Vision Transformer",
    "resnet": "ResNet",
    "text": "text tower",
    "logits": "logits",
}


def _sentence(pitfall: Pitfall) -> str:
    values = {"activation": "another", "side": "tower's", "heads": "another number of"}
    sentence = pitfall.sentence.format(**values).replace("the tower's tower", "the tower")
    return sentence[0].upper() + sentence[1:] + "."


def section(pitfall: Pitfall) -> str:
    """One fault: what it is, what one sees, why, the fix, the test."""
    where = ", ".join(STAGES[stage] for stage in pitfall.stages)
    return "\n".join(
        [
            f"### {pitfall.name}",
            "",
            f"{_sentence(pitfall)} Where: {where}.",
            "",
            f"- **One sees**: {pitfall.sees}",
            f"- **Why**: {pitfall.why}",
            f"- **Fix**: {pitfall.fix}",
            f"- **Test that catches it**: {pitfall.test}",
            "",
        ]
    )


def render() -> str:
    """The whole page."""
    lines = [HEAD]
    for part, title in PARTS.items():
        lines.append(f"## {title}\n")
        for pitfall in FAULTS:
            first = pitfall.stages[0]
            if first == part or (part == "tower" and first not in PARTS):
                lines.append(section(pitfall))
    return "\n".join(lines)


if __name__ == "__main__":
    print(render(), end="")
