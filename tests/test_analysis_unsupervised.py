"""The criterion that needs no phone times: its parts against independent computations, and its order where the truth is
known by construction."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from builders import make_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import command_server
from sklearn.metrics import mutual_info_score

from hubert_plugin.analysis.layers import QUICK_KMEANS
from hubert_plugin.analysis.page.gather import qualities, read_analysis
from hubert_plugin.analysis.report import AnalysisReport
from hubert_plugin.analysis.sweep import sweep_units
from hubert_plugin.analysis.unsupervised import (
    CRITERION_NAME,
    NOISE_DB,
    SPEEDS,
    PairCounts,
    View,
    make_view,
    mutual_information_bits,
    persistence,
)
from hubert_plugin.analysis.utterances import Utterances
from hubert_plugin.audio.resample import resample_to_16k
from hubert_plugin.frames import num_frames
from hubert_plugin.registry import Features, Waveform


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 400))
def test_mutual_information_is_that_of_scikit_learn_with_millers_correction(seed: int, k: int, n: int) -> None:
    rng = np.random.default_rng(seed)

    a = rng.integers(0, k, n)
    b = np.where(rng.random(n) < 0.6, (a + 1) % k, rng.integers(0, k, n))

    pairs = PairCounts(k)

    # In two parts: counting goes on.
    pairs.add(a[: n // 2], b[: n // 2])
    pairs.add(a[n // 2 :], b[n // 2 :])

    cells = len(set(zip(a.tolist(), b.tolist(), strict=True)))

    correction = (len(set(a.tolist())) + len(set(b.tolist())) - cells - 1) / (2 * n)

    expected = (mutual_info_score(a, b) + correction) / math.log(2)

    assert pairs.information() == pytest.approx(expected / math.log2(k), abs=1e-9)


def test_independent_units_share_no_information_on_average() -> None:
    rng = np.random.default_rng(0)

    plain, corrected = [], []

    for _ in range(30):
        a, b = rng.integers(0, 20, (2, 2000))

        counts = np.zeros((20, 20), np.int64)
        np.add.at(counts, (a, b), 1)

        plain.append(mutual_info_score(a, b) / math.log(2))
        corrected.append(mutual_information_bits(counts) or 0.0)

    # The plain estimate is too high: that would flatter large K.
    assert np.mean(plain) > 0.1

    assert abs(np.mean(corrected)) < 0.01


def test_nothing_counted_is_no_number() -> None:
    assert PairCounts(3).information() is None
    assert persistence([np.zeros(50, np.int32), np.zeros(0, np.int32)], 3) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.sampled_from([0.9, 1.0, 1.1]))
def test_frames_of_one_moment_meet(count: int, speed: float) -> None:
    num_view_frames = max(1, int(count / speed))

    i, j = View(np.zeros(0, np.float32), speed).matching_frames(count, num_view_frames)

    assert len(i) == len(j) and (np.diff(i) == 1).all()

    assert i.min(initial=0) >= 0 and i.max(initial=0) < count
    assert j.min(initial=0) >= 0 and j.max(initial=0) < num_view_frames

    # Never more than half a frame apart.
    assert (np.abs((0.0125 + 0.02 * i) / speed - (0.0125 + 0.02 * j)) <= 0.01 + 1e-9).all()

    if speed == 1.0:
        assert i.tolist() == j.tolist() == list(range(count))


def test_the_view_is_another_voice_in_noise_of_its_own_spectrum() -> None:
    t = np.arange(32_000) / 16_000

    tone = (0.2 * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)

    speeds = set()

    for nr in range(20):
        view = make_view(tone, f"u{nr}")

        speeds.add(view.speed)

        faster = resample_to_16k(tone, round(16_000 * view.speed))

        assert len(view.waveform) == len(faster) == math.ceil(32_000 / view.speed)

        # The tone is higher by as much as it is faster.
        spectrum = np.abs(np.fft.rfft(faster))

        assert spectrum.argmax() * 16_000 / len(faster) == pytest.approx(1000 * view.speed, abs=1)

        noise = view.waveform - faster

        level = 10 * np.log10(np.square(faster).mean() / np.square(noise).mean())

        assert level == pytest.approx(NOISE_DB, abs=0.1)

        # Where the utterance has no energy, the noise has none.
        at_noise = np.abs(np.fft.rfft(noise))

        assert np.allclose(at_noise, spectrum * 10 ** (-NOISE_DB / 20), atol=1e-2 * at_noise.max())

    assert speeds == set(SPEEDS)


def test_a_view_is_the_same_whenever_it_is_asked_for() -> None:
    waveform = np.random.default_rng(0).standard_normal(5000).astype(np.float32)

    def views(id_: str, seed: int) -> bytes:
        return make_view(waveform, id_, seed=seed).waveform.tobytes()

    assert views("a", 0) == views("a", 0)
    assert len({views("a", 0), views("a", 1), views("b", 0)}) == 3


def test_silence_has_a_view_too() -> None:
    view = make_view(np.zeros(3200, np.float32), "a")

    assert np.isfinite(view.waveform).all() and not view.waveform.any()


def test_units_that_follow_sounds_persist_and_units_that_follow_voices_do_not() -> None:
    rng = np.random.default_rng(0)

    sounds = [np.repeat(rng.integers(0, 8, 40), 5) for _ in range(30)]
    voices = [np.full(200, rng.integers(0, 8)) for _ in range(30)]
    chance = [rng.integers(0, 8, 200) for _ in range(30)]

    a, b, c = (persistence(units, 8) for units in (sounds, voices, chance))

    assert a is not None and b is not None and c is not None

    # Of sounds of five frames, one fifth lasts four frames more; else the next one is any of eight.
    p = np.array([0.2 + 0.8 / 8, *[0.8 / 8] * 7])

    assert a == pytest.approx((3 + (p * np.log2(p)).sum()) / 3, abs=0.01)

    assert abs(b) < 0.02 and abs(c) < 0.02


def _speech(num_utterances: int, seed: int) -> Utterances:
    """Utterances of tones of 100 ms, in a voice of its own level each."""
    rng = np.random.default_rng(seed)

    waveforms = []

    for _ in range(num_utterances):
        pitches = rng.choice([400.0, 900.0, 2000.0, 4200.0], 20)

        t = np.arange(1600) / 16_000

        level = rng.choice([0.02, 0.06, 0.2, 0.5])

        tones = [level * np.sin(2 * np.pi * f * t) for f in pitches]

        waveforms.append(np.concatenate(tones).astype(np.float32))

    return Utterances([f"u{i}" for i in range(num_utterances)], lambda i: waveforms[i], range(num_utterances))


def _extract(waveform: Waveform) -> dict[str, Features]:
    """What is said (which octave), who says it (how loud), and neither."""
    starts = 320 * np.arange(num_frames(len(waveform)))

    if not len(starts):
        return {name: np.zeros((0, 1), np.float32) for name in ("L1", "L2", "L3")}

    windows = np.lib.stride_tricks.sliding_window_view(waveform, 400)[starts]

    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(400), axis=1)))

    pitch = np.log2(40.0 * (power[:, 1:].argmax(axis=1) + 1))

    loudness = np.full(len(starts), np.log(np.square(waveform).mean() + 1e-12))

    detail = 1e6 * windows[:, 200]

    return {
        name: np.asarray(values, np.float32)[:, None]
        for name, values in (("L1", detail - np.floor(detail)), ("L2", loudness), ("L3", pitch))
    }


def test_the_criterion_prefers_what_is_said_to_the_voice_and_to_chance() -> None:
    result = sweep_units(
        _extract, _speech(20, 0), _speech(12, 1), None, [4], kmeans=QUICK_KMEANS, num_trials=2, with_criterion=True
    )

    values = {s.space: s.consistency for s in result}

    assert all(v is not None for v in values.values())

    assert values["L3"] > 0.8 and values["L1"] < 0.1  # type: ignore[operator]

    lasting = {s.space: s.persistence for s in result}

    # 0.039, were no frame between two tones: one of five frames is followed by the same tone, else by any of four.
    assert 0.045 > lasting["L3"] > 0.02 > abs(lasting["L2"])  # type: ignore[operator, arg-type]

    report = AnalysisReport({}, spaces=result)

    plain = report.to_dict()

    assert report.best_by_criterion(4) == "L3" and report.best_space(4) is None

    assert plain["best_by_criterion"] == {"4": "L3"} and plain["criterion"] == CRITERION_NAME

    assert plain["spaces"]["L3"]["units"]["4"]["criterion"] == values["L3"]


def test_without_being_asked_for_nothing_is_computed_twice() -> None:
    calls = []

    def extract(waveform: Waveform) -> dict[str, Features]:
        calls.append(len(waveform))

        return _extract(waveform)

    result = sweep_units(extract, _speech(3, 0), _speech(3, 1), None, [4], kmeans=QUICK_KMEANS)

    assert len(calls) == 6 and all(s.consistency is None and s.persistence is None for s in result)


def test_utterances_without_a_frame_do_not_take_part() -> None:
    speech = _speech(4, 0)

    # 400 samples are a frame, but not when they are said faster.
    lengths = {1: 399, 2: 400, 3: 420}

    judged = Utterances(speech.ids, lambda i: speech.read(i)[: lengths.get(i, 32_000)], range(4))

    result = sweep_units(_extract, speech, judged, None, [4], kmeans=QUICK_KMEANS, with_criterion=True)

    assert all(s.consistency is not None for s in result)


def test_analyze_measures_it_where_there_are_no_phone_times(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_train=4, num_valid=4)

    def analyze(name: str, *options: str) -> tuple[dict[str, object], str]:
        run = command_server().run(
            "recipe",
            "hubert",
            "analyze",
            tmp_path / name,
            "--no-rich",
            "--config",
            f"manifest_dir={corpus}",
            "mfcc=true",
            "num_clusters=[4]",
            "plots=false",
            *options,
        )

        assert run.poll() == 0, run.raw

        return json.loads((tmp_path / name / "analysis.json").read_text()), run.text

    plain, output = analyze("with")

    value = plain["spaces"]["mfcc"]["units"]["4"]["criterion"]  # type: ignore[index]

    assert isinstance(value, float) and f"{value:.3f}" in output and "cons." in output

    assert plain["best_by_criterion"] == {"4": "mfcc"}

    (quality,) = qualities(read_analysis(tmp_path / "with" / "analysis.json"), mfcc=True)

    assert quality.criterion == value and quality.pnmi is None

    plain, output = analyze("without", "criterion=false")

    assert plain["spaces"]["mfcc"]["units"]["4"]["criterion"] is None and "cons." not in output  # type: ignore[index]


@pytest.mark.parametrize("preset", ["figure2", "table4"])
def test_presets_run(tmp_path: Path, preset: str) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_train=4, num_valid=4)

    run = command_server().run(
        "recipe",
        "hubert",
        "analyze",
        tmp_path / "out",
        "--preset",
        preset,
        "--no-rich",
        "--config",
        f"manifest_dir={corpus}",
        "mfcc=true",
        "num_clusters=[4,6]",
        "n_init=1",
        "max_iter=2",
        "plots=false",
    )

    assert run.poll() == 0, run.raw

    units = json.loads((tmp_path / "out" / "analysis.json").read_text())["spaces"]["mfcc"]["units"]

    assert list(units) == ["4", "6"] and len(units["4"]["trials"]) == (10 if preset == "table4" else 1)
