"""The frame clock against the convolutions and kaldi's MFCC themselves."""

from __future__ import annotations

import json

import pytest
import torch
from golden import FAIRSEQ
from hypothesis import given
from hypothesis import strategies as st
from torchaudio.compliance.kaldi import mfcc

from hubert_plugin import frames
from hubert_plugin.models.hubert.config import HubertConfig


@given(st.integers(400, 500_000))
def test_num_frames_is_that_of_the_convolutions(num_samples: int) -> None:
    length = num_samples

    for _, kernel, stride in HubertConfig().conv_layers:
        length = (length - kernel) // stride + 1

    assert frames.num_frames(num_samples) == length


@given(st.integers(1, 2000))
def test_num_samples_is_the_smallest(num_frames: int) -> None:
    num_samples = frames.num_samples_of(num_frames)

    assert frames.num_frames(num_samples) == num_frames
    assert frames.num_frames(num_samples - 1) == num_frames - 1


@pytest.mark.parametrize("num_samples", [400, 559, 560, 719, 720, 16000, 16079, 16080, 15999])
def test_num_mfcc_frames_is_kaldis(num_samples: int) -> None:
    assert frames.num_mfcc_frames(num_samples) == len(mfcc(torch.zeros(1, num_samples)))


@given(st.integers(400, 500_000))
def test_every_second_mfcc_label_covers_all_frames(num_samples: int) -> None:
    """Trap T7: no frame is lost, for any length."""
    num_labels = frames.num_labels(num_samples, 100)

    assert -(-num_labels // frames.labels_per_frame(100)) == frames.num_frames(num_samples)


def test_below_the_receptive_field_there_is_no_frame() -> None:
    assert frames.num_frames(399) == frames.num_mfcc_frames(399) == frames.num_frames(0) == 0


def test_unknown_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="50 or 100"):
        frames.label_stride(25)


def test_valid_frames_are_the_convolution_formulas() -> None:
    """Trap T6: fairseq's padding rule keeps up to two frames more; the golden table has both."""
    table = json.loads((FAIRSEQ / "forward_padding_mask.json").read_text())

    for row in table:
        ours = frames.num_frames(row["valid_samples"])

        assert ours == row["conv_formula_valid_frames"]
        assert ours <= row["fairseq_valid_frames"] <= ours + 2


def test_label_strides_equal_fairseqs() -> None:
    """Which label each kept frame gets, from fairseq's own alignment (golden `forward_targets`)."""
    table = json.loads((FAIRSEQ / "forward_targets.json").read_text())

    for row in table:
        if row["label_rate"] not in (50.0, 100.0):
            continue

        step = frames.labels_per_frame(int(row["label_rate"]))

        assert row["label_indices"] == [step * t for t in range(row["feat_frames_kept"])]
