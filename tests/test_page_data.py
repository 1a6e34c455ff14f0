"""The numbers of a report: there and back, strictly, and gathered from the files of runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_data import make_page_data

from hubert_plugin.analysis.page.data import Curve, PageData, Round, SpaceQuality
from hubert_plugin.analysis.page.gather import (
    MAX_POINTS,
    MAX_RUN,
    baseline,
    make_example,
    qualities,
    read_analysis,
    read_curves,
    scores,
    summarize_units,
)
from hubert_plugin.errors import ReportError


def test_data_comes_back_from_json_as_it_was() -> None:
    data = make_page_data()

    assert PageData.from_json(data.to_json()) == data


def test_what_is_not_a_number_becomes_null() -> None:
    curve = Curve(split="train", metric="loss", steps=[1, 2, 3], values=[1.0, float("nan"), float("inf")])

    data = replace(make_page_data(), rounds=[replace(make_page_data().rounds[0], curves=[curve])])

    text = data.to_json()

    assert "NaN" not in text and "Infinity" not in text

    assert PageData.from_json(text).rounds[0].curves[0].values == [1.0, None, None]


def test_all_that_is_wrong_with_a_report_is_told_at_once() -> None:
    plain = json.loads(make_page_data().to_json())

    del plain["rounds"][0]["features"]
    plain["rounds"][1]["curves"][0]["split"] = 2
    plain["rounds"][1]["quality"][0]["pnmi"] = True
    plain["steps"][0]["colour"] = "red"
    plain["corpus"] = []
    plain["baseline"] = 3

    with pytest.raises(ReportError) as info:
        PageData.from_json(json.dumps(plain))

    for part in (
        "`rounds[0].features` is missing",
        "`rounds[1].curves[0].split` must be of type str, but is 2",
        "`rounds[1].quality[0].pnmi` must be of type float, but is true",
        "`steps[0].colour` is not known",
        "`corpus` must be of type dict",
        "`baseline` must be an object, but is 3",
    ):
        assert part in str(info.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rounds.0.curves.0.values", [1.0], "a value for each update.*3 updates and 1 values"),
        ("examples.0.spectrogram", [[1, 2], [3]], "equally many bands"),
    ],
)
def test_lists_that_do_not_belong_together_are_refused(old: str, new: object, expected: str) -> None:
    plain = json.loads(make_page_data().to_json())

    *path, last = old.split(".")

    part = plain

    for key in path:
        part = part[int(key)] if key.isdigit() else part[key]

    part[last] = new

    with pytest.raises(ReportError, match=expected):
        PageData.from_json(json.dumps(plain))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "must be JSON"),
        ("[]", "but has none"),
        ('{"format": "hubert-report/0"}', "but has 'hubert-report/0'"),
    ],
)
def test_what_is_no_report_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ReportError, match=expected):
        PageData.from_json(text)


def _write_metrics(folder: Path, split: str, records: list[dict[str, object]], tail: str = "") -> None:
    (folder / "metrics").mkdir(exist_ok=True)

    lines = [json.dumps(r) + "\n" for r in records]

    (folder / "metrics" / f"{split}.jsonl").write_text("".join(lines) + tail)


def test_curves_are_read_from_what_a_run_recorded(tmp_path: Path) -> None:
    _write_metrics(
        tmp_path,
        "train",
        [
            {"Step": 10, "Masked Loss (bits)": 5.5, "Masked Accuracy": 0.1},
            {"Step": 20, "Masked Loss (bits)": 5.0, "Masked Accuracy": 0.2},
            # The run was killed, and went on from update 10.
            {"Step": 20, "Masked Loss (bits)": 4.9, "Masked Accuracy": 0.25},
            {"Step": 30, "Masked Loss (bits)": float("nan"), "Masked Accuracy": 0.3},
        ],
        tail='{"Step": 40, "Masked Lo',
    )
    _write_metrics(tmp_path, "valid", [{"Step": 30, "Masked Loss (bits)": 4.0}])

    curves = {(c.split, c.metric): (c.steps, c.values) for c in read_curves(tmp_path)}

    assert curves == {
        ("train", "masked_loss_bits"): ([10, 20, 30], [5.5, 4.9, None]),
        ("train", "masked_accuracy"): ([10, 20, 30], [0.1, 0.25, 0.3]),
        ("valid", "masked_loss_bits"): ([30], [4.0]),
    }


def test_of_several_learning_rates_the_first_is_shown(tmp_path: Path) -> None:
    _write_metrics(tmp_path, "train", [{"Step": 10, "Learning Rate": [0.1, 0.2]}, {"Step": 20, "Learning Rate": 0.05}])

    (curve,) = read_curves(tmp_path)

    assert (curve.metric, curve.values) == ("learning_rate", [0.1, 0.05])


def test_a_run_without_records_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == []


def test_long_curves_are_thinned_but_keep_their_ends(tmp_path: Path) -> None:
    _write_metrics(tmp_path, "train", [{"Step": i, "Loss": float(i)} for i in range(1, 5001)])

    (curve,) = read_curves(tmp_path)

    assert len(curve.steps) == MAX_POINTS and curve.steps[0] == 1 and curve.steps[-1] == 5000

    assert curve.values == [float(s) for s in curve.steps]


def test_an_analysis_is_divided_into_layers_and_mfcc(tmp_path: Path) -> None:
    path = tmp_path / "analysis.json"

    trial = {"pnmi": 0.3, "pnmi_std": 0.0, "phone_purity": 0.4, "cluster_purity": 0.1, "agreement": None}

    path.write_text(
        json.dumps(
            {
                "spaces": {
                    "mfcc": {"units": {"50": {**trial, "pnmi": 0.2, "trials": [{}]}}},
                    "L2": {
                        "units": {"50": {**trial, "pnmi_std": 0.01, "agreement": 0.5, "trials": [{}, {}]}},
                        "abx": {"triphone within": {"error": 0.1}},
                        "cca": {"words": {"score": 0.6, "std": 0.02}},
                    },
                }
            }
        )
    )

    analysis = read_analysis(path)

    (layer,) = qualities(analysis, mfcc=False)

    assert layer == SpaceQuality(
        space="L2", num_clusters=50, pnmi=0.3, pnmi_std=0.01, phone_purity=0.4, cluster_purity=0.1, agreement=0.5
    )

    # One fit has no spread, whatever the file says.
    assert [(q.space, q.pnmi, q.pnmi_std) for q in baseline(analysis).quality] == [("mfcc", 0.2, None)]

    assert [(s.space, s.task, s.value, s.std) for s in scores(analysis, "abx", mfcc=False)] == [
        ("L2", "triphone within", 0.1, None)
    ]
    assert [(s.task, s.value, s.std) for s in scores(analysis, "cca", mfcc=False)] == [("words", 0.6, 0.02)]

    assert scores(analysis, "abx", mfcc=True) == []


@pytest.mark.parametrize("content", [None, "{", "[]", '{"spaces": 3}'])
def test_what_is_no_analysis_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "analysis.json"

    if content is not None:
        path.write_text(content)

    with pytest.raises(ReportError, match=r"hubert analyze"):
        read_analysis(path)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=60), max_size=5), st.sampled_from([50, 100]))
def test_units_are_counted_as_by_hand(utterances: list[list[int]], rate: int) -> None:
    summary = summarize_units(
        [np.array(u, np.int32) for u in utterances], name="km", source="MFCC", split="valid", num_units=6, rate=rate
    )

    runs: list[tuple[int, int]] = []

    for units in utterances:
        for nr, unit in enumerate(units):
            if nr and units[nr - 1] == unit:
                runs[-1] = (unit, runs[-1][1] + 1)
            else:
                runs.append((unit, 1))

    flat = [u for units in utterances for u in units]

    assert summary.counts == [flat.count(u) for u in range(6)]
    assert summary.num_dead == 6 - len(set(flat))
    assert summary.run_lengths == [sum(min(n, MAX_RUN) == i for _, n in runs) for i in range(1, MAX_RUN + 1)]

    for unit in range(6):
        lengths = [n for u, n in runs if u == unit]

        seconds = summary.unit_run_seconds[unit]

        if lengths:
            assert seconds is not None and np.isclose(seconds, np.mean(lengths) / rate)
        else:
            assert seconds is None

    if flat:
        p = np.array([c for c in summary.counts if c]) / len(flat)

        assert summary.entropy_bits is not None and summary.mean_run_seconds is not None
        assert np.isclose(summary.entropy_bits, -(p * np.log2(p)).sum())
        assert np.isclose(summary.mean_run_seconds, len(flat) / len(runs) / rate)
    else:
        assert summary.entropy_bits is None and summary.mean_run_seconds is None


def test_an_example_shows_where_the_energy_is() -> None:
    # One second of 1 kHz, then one of 4 kHz.
    t = np.arange(16_000) / 16_000

    waveform = 0.3 * np.concatenate([np.sin(2 * np.pi * 1000 * t), np.sin(2 * np.pi * 4000 * t)]).astype(np.float32)

    example = make_example(
        waveform,
        "a",
        tracks={"MFCC": (100, np.zeros(198, np.int32)), "round 1": (50, np.ones(99, np.int32))},
        phones=[(0.0, 1.0, "AA"), (1.0, 2.5, "B"), (2.5, 3.0, "C")],
    )

    levels = np.array(example.spectrogram)

    assert levels.shape == (198, 48) and levels.min() >= 0 and levels.max() == 255

    def mel(f: float) -> float:
        return 1127 * np.log(1 + f / 700)

    for frame, f in ((40, 1000.0), (150, 4000.0)):
        expected = 48 * (mel(f) - mel(20)) / (mel(8000) - mel(20))

        assert abs(int(levels[frame].argmax()) + 0.5 - expected) < 1.5

    assert [len(track.units) for track in example.tracks] == [198, 99]

    # What ends after the audio is cut, what begins after it is left out.
    assert example.phones is not None
    assert [(s.start, s.end, s.name) for s in example.phones] == [(0.0, 1.0, "AA"), (1.0, 2.0, "B")]


def test_only_the_beginning_of_a_long_utterance_is_shown() -> None:
    example = make_example(
        np.zeros(160_000, np.float32), "a", tracks={"km": (50, np.zeros(499, np.int32))}, max_seconds=2.0
    )

    assert example.duration == 2.0 and len(example.tracks[0].units) == 99 and len(example.spectrogram) == 198

    assert example.phones is None


def test_a_round_needs_only_its_names() -> None:
    round_ = Round(name="Round 1", features="MFCC", units="k-means", training="none")

    data = PageData(title="t", created="2026-01-01", rounds=[round_])

    assert PageData.from_json(data.to_json()).rounds == [round_]
