"""What lists the records of data, in a few words: a resumed run compares it with how it began.

Names and captions, not pictures: `fingerprint.py` reads those as well, which takes an epoch.
"""

import hashlib
from collections.abc import Iterable


def describe_listing(count: int, listing: Iterable[str]) -> str:
    """The number of pairs, and a digest of the texts that list them in their order.

    >>> describe_listing(2, ["a.jpg", "a cat", "b.jpg", "a dog"])
    '2 pairs, 96b8bd302c15c1ec'
    """
    found = hashlib.sha256()
    for text in listing:
        content = text.encode("utf-8", "surrogatepass")
        found.update(len(content).to_bytes(8, "little") + content)
    return f"{count:,} pairs, {found.hexdigest()[:16]}"
