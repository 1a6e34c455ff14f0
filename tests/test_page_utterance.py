"""The example utterances of the page: spectrograms, and units that stand where they were heard."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rendered_page import parse, text_of

from hubert_plugin.analysis.page.data import Example, PageData, UnitTrack
from hubert_plugin.analysis.page.png import encode_png
from hubert_plugin.analysis.page.utterance import runs
from hubert_plugin.analysis.page.write import render_page


def test_spectrograms_are_png_files_that_others_read() -> None:
    image = pytest.importorskip("PIL.Image")

    rng = np.random.default_rng(0)

    indices = rng.integers(0, 256, (7, 11)).astype(np.uint8)
    palette = rng.integers(0, 256, (256, 3)).astype(np.uint8)

    decoded = np.asarray(image.open(io.BytesIO(encode_png(indices, palette))).convert("RGB"))

    assert np.array_equal(decoded, palette[indices])


def test_units_are_drawn_around_the_middle_of_their_windows() -> None:
    # Windows of 25 ms: the first frame's middle is at 12.5 ms, whatever the rate.
    def at(rate: int) -> list[tuple[float, ...]]:
        return [tuple(np.round(run, 6)) for run in runs(UnitTrack(name="", rate=rate, units=[3, 3, 5]))]

    assert at(50) == [(0.0025, 0.0425, 3), (0.0425, 0.0625, 5)]
    assert at(100) == [(0.0075, 0.0275, 3), (0.0275, 0.0375, 5)]

    assert runs(UnitTrack(name="", rate=50, units=[])) == []


def test_an_utterance_without_frames_or_phones_can_be_shown() -> None:
    example = Example(utterance="a", duration=0.01, spectrogram=[], frame_rate=100, max_frequency=8000.0)

    page = render_page(PageData(title="t", created="now", examples=[example]))

    assert "Phone times are not known" in text_of(parse(page))
