"""Class names as folders have them, not UTF-8 or with control characters, end no plot."""

from pathlib import Path

import numpy as np

from experiments.report import __main__ as report
from jaxclip.evaluation import plots

NAMES = ["\udcff", "a\x1b[31m\u202e", "ok", "$x_$", "new\nline"]
COUNTS = np.eye(5, dtype=np.int64)


def test_a_confusion_matrix_shows_any_class_name(tmp_path: Path) -> None:
    plots.confusion(COUNTS, NAMES, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 0
    figure = report.confusion(NAMES, COUNTS)["figure"]
    assert report.data_uri(figure).startswith("data:image/png;base64,iVBOR")


def test_similarities_show_any_name(tmp_path: Path) -> None:
    images = np.zeros((5, 8, 8, 4), np.uint8)
    plots.similarity(images, NAMES, np.eye(5), tmp_path / "similarity.png")
    assert (tmp_path / "similarity.png").stat().st_size > 0
