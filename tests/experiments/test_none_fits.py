"""The rates of the mark that no label fits, on some of the drawings."""

import numpy as np
import pytest

from experiments.proofs import none_fits
from jaxclip.data.emoji.pictures import load_unseen_artist


def test_the_rates_are_those_of_marked_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    some = load_unseen_artist().select(np.arange(0, 1500, 25))
    monkeypatch.setattr(none_fits, "load_unseen_artist", lambda: some)
    monkeypatch.setattr(none_fits, "BATCH", 60)
    (row,) = none_fits.rates(none_fits.Flags(labels=(3,)))
    assert row["right answers"] > 50
    assert row["right answers that are marked, %"] < 25 < 75 < row["marked where none is right, %"]
