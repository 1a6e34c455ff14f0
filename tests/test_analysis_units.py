"""Statistics of units, joint tables, and the sweep over layers and numbers of units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from itertools import groupby
from math import log2
from pathlib import Path

import numpy as np
import pytest
from builders import one_thread  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hubert_plugin import frames, load_hubert
from hubert_plugin.analysis.abx import AbxScore
from hubert_plugin.analysis.alignments import Alignment
from hubert_plugin.analysis.joint import JointTable
from hubert_plugin.analysis.layers import QUICK_KMEANS, Utterances, layer_quality
from hubert_plugin.analysis.purity import joint_counts, unit_quality
from hubert_plugin.analysis.report import AnalysisReport
from hubert_plugin.analysis.spaces import check_layers, make_extractor
from hubert_plugin.analysis.statistics import unit_statistics
from hubert_plugin.analysis.sweep import analyze_units, sweep_units, unit_agreement
from hubert_plugin.analysis.utterances import utterances_of
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.demo import frame_phones
from hubert_plugin.errors import ConfigError, LabelError, UnitModelError
from hubert_plugin.registry import Features, Waveform
from hubert_plugin.units.kmeans import KMeansFitter
from hubert_plugin.units.mfcc import MfccConfig, MfccSource, mfcc
from hubert_plugin.units.stream import ArrayFeatureStream

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=30), min_size=1, max_size=4), st.sampled_from([50, 100]))
def test_statistics_equal_counting(utterances: list[list[int]], rate: int) -> None:
    arrays = [np.array(u, np.int32) for u in utterances]

    flat = [z for u in utterances for z in u]

    if not flat:
        with pytest.raises(LabelError, match="all utterances are empty"):
            unit_statistics(arrays, 7, rate)

        return

    statistics = unit_statistics(arrays, 7, rate)

    counts, runs = Counter(flat), [len(list(run)) for u in utterances for _, run in groupby(u)]

    entropy = -sum(n / len(flat) * log2(n / len(flat)) for n in counts.values())

    assert statistics.num_frames == len(flat)
    assert statistics.num_dead_units == 7 - len(counts)
    assert statistics.entropy_bits == pytest.approx(entropy)
    assert statistics.perplexity == pytest.approx(2**entropy)
    assert statistics.largest_share == max(counts.values()) / len(flat)
    assert statistics.num_runs == len(runs)
    assert statistics.mean_run_frames == pytest.approx(sum(runs) / len(runs))
    assert statistics.mean_run_seconds == pytest.approx(sum(runs) / len(runs) / rate)


def test_units_that_are_not_there_are_told() -> None:
    with pytest.raises(LabelError, match=r"must be 0 … 3, but those of utterance 1 reach 4"):
        unit_statistics([np.array([0]), np.array([4])], 4, 50)


def test_joint_table_is_sorted_and_has_all_units(tmp_path: Path) -> None:
    counts, phones, _, _ = joint_counts([(["a", "b", "b", "b", "a", "c"], [3, 1, 1, 0, 3, 1])])

    table = JointTable.of(counts, phones, 6)

    assert table.phones == ["b", "a", "c"]
    assert table.counts.tolist() == [[1, 2, 0, 0, 0, 0], [0, 0, 0, 2, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert table.phone_given_unit[:, 1] == pytest.approx([2 / 3, 0, 1 / 3])
    assert table.unit_order().tolist() == [0, 1, 3, 2, 4, 5]

    table.save(tmp_path / "joint.tsv")

    lines = (tmp_path / "joint.tsv").read_text().splitlines()

    assert lines[:2] == ["phone\t0\t1\t2\t3\t4\t5", "b\t1\t2\t0\t0\t0\t0"]


def make_split(num: int, seed: int) -> tuple[Utterances, Alignment, Mapping[str, np.ndarray]]:
    """Utterances that are numbered, the phones of their frames as segments and as numbers."""
    rng = np.random.default_rng(seed)

    numbers = {f"u{i}": np.repeat(rng.integers(0, 4, 30), 2) for i in range(num)}

    # Frame t is read at 12.5 ms + t * 20 ms, and the segments change half-way between these times.
    segments = {
        id_: [(0.02 * t + 0.0025, 0.02 * t + 0.0225, "abcd"[n]) for t, n in enumerate(phones)]
        for id_, phones in numbers.items()
    }

    utterances = Utterances(list(numbers), lambda i: np.full(1, i, np.float32), list(range(num)))

    return utterances, Alignment(Path("x"), segments), numbers


def test_sweep_tells_spaces_that_know_phones_from_others() -> None:
    fit_on, _, fit_numbers = make_split(20, 0)
    judge_on, alignment, judge_numbers = make_split(10, 1)

    reads: list[int] = []

    def extract(numbers: Mapping[str, np.ndarray]) -> Mapping[str, Features]:
        def of(waveform: Waveform) -> Mapping[str, Features]:
            idx = int(waveform[0])

            reads.append(idx)

            rng = np.random.default_rng([idx, len(numbers)])

            phones = numbers[f"u{idx}"]

            return {
                "L1": rng.standard_normal((len(phones), 6)).astype(np.float32),
                "L2": np.eye(4, dtype=np.float32)[phones] + 0.01 * rng.standard_normal((60, 4)).astype(np.float32),
            }

        return of  # type: ignore[return-value]

    # One function for both splits, as a model would be: they differ in length only.
    both = {20: extract(fit_numbers), 10: extract(judge_numbers)}

    calls = iter([20] * 20 + [10] * 10)

    result = sweep_units(
        lambda w: both[next(calls)](w),  # type: ignore[operator]
        fit_on,
        judge_on,
        alignment,
        [4, 8],
        kmeans=QUICK_KMEANS,
        num_trials=3,
    )

    assert len(reads) == 30  # once each, for two spaces, two numbers of units and three trials

    assert [(s.space, s.num_clusters, len(s.trials)) for s in result] == [
        ("L1", 4, 3),
        ("L1", 8, 3),
        ("L2", 4, 3),
        ("L2", 8, 3),
    ]

    by_key = {(s.space, s.num_clusters): s for s in result}

    assert by_key["L2", 4].mean("pnmi") == pytest.approx(1.0)
    assert by_key["L2", 4].std("pnmi") == pytest.approx(0.0)
    assert by_key["L2", 4].mean("cluster_purity") == pytest.approx(1.0)
    assert by_key["L2", 4].agreement == pytest.approx(1.0)

    assert by_key["L1", 8].mean("pnmi") < 0.1  # type: ignore[operator]
    assert by_key["L1", 8].agreement < 0.9  # type: ignore[operator]

    report = AnalysisReport({}, spaces=result)

    assert report.best_space(4) == "L2"

    # Where there is one phone only, its entropy is 0, and nothing can be told of it.
    nothing = replace(by_key["L1", 4].trials[0], quality=replace(by_key["L1", 4].trials[0].quality, pnmi=float("nan")))

    assert AnalysisReport({}, spaces=[replace(by_key["L1", 4], trials=[nothing])]).best_space(4) is None

    plain = report.to_dict()["spaces"]["L2"]["units"]["4"]

    assert plain["pnmi"] == pytest.approx(1.0)
    assert len(plain["trials"]) == 3


def test_names_in_brackets_are_shown_as_they_are() -> None:
    """Those of item files can be anything; rich takes brackets for markup."""
    console = Console(width=120, record=True, file=StringIO())

    for table in AnalysisReport({}, abx={"L1": {"[/x] within": AbxScore(0.25, 1, 2, 3)}}).tables():
        console.print(table)

    assert "[/x] within" in console.export_text()


def test_more_clusters_than_frames_are_told() -> None:
    utterances, alignment, numbers = make_split(2, 0)

    with pytest.raises(UnitModelError, match="500 clusters needs at least as many frames"):
        sweep_units(
            lambda w: {"L1": np.eye(4, dtype=np.float32)[numbers[f"u{int(w[0])}"]]},
            utterances,
            utterances,
            alignment,
            [500],
            kmeans=QUICK_KMEANS,
        )


def test_agreement_ignores_numbers_and_knows_chance() -> None:
    rng = np.random.default_rng(0)

    units = [rng.integers(0, 5, 4000).astype(np.int32) for _ in range(3)]

    renamed = [rng.permutation(5)[u].astype(np.int32) if i else u for i, u in enumerate([units[0]] * 3)]

    assert unit_agreement([[u] for u in renamed]) == pytest.approx(1.0)
    assert unit_agreement([[u] for u in units]) == pytest.approx(0.0, abs=0.01)
    assert unit_agreement([[units[0]]]) is None


def test_labels_of_100_hz_are_compared_at_their_own_rate() -> None:
    segments = [(0.0, 0.5, "a"), (0.5, 1.0, "b")]

    num_labels = frames.num_labels(frames.SAMPLE_RATE, 100)

    units = np.array([0 if 0.0125 + 0.01 * m < 0.5 else 1 for m in range(num_labels)], np.int32)

    analysis = analyze_units([units], ["u"], 2, 100, Alignment(Path("x"), {"u": segments}))

    assert analysis.quality is not None
    assert analysis.quality.pnmi == pytest.approx(1.0)
    assert analysis.statistics.mean_run_seconds == pytest.approx(num_labels / 2 / 100)

    with pytest.raises(LabelError, match=r"cannot be compared with the phones in 'x': There is no frame"):
        analyze_units([units], ["u"], 2, 100, Alignment(Path("x"), {"u": []}))

    without = analyze_units([units], ["u"], 2, 100, None)

    assert (without.quality, without.joint) == (None, None)


@pytest.mark.parametrize("name", ["tiny_post", "tiny_pre"])
def test_spaces_are_the_layers_of_the_model_and_mfcc(data_dir: Path, name: str) -> None:
    model = load_hubert(data_dir / "fairseq" / f"{name}.pt")

    num_layers = len(model.encoder.layers)

    waveform = np.random.default_rng(0).standard_normal(7000).astype(np.float32) * 0.1

    spaces = make_extractor(model, range(num_layers + 1), mfcc=True)(waveform)

    assert list(spaces) == ["mfcc", *(f"L{n}" for n in range(num_layers + 1))]

    assert np.array_equal(spaces["mfcc"], MfccSource(MfccConfig(rate=50)).extract([waveform])[0])

    for layer in range(num_layers + 1):
        expected = model.extract_features([waveform], layer=layer)[0].numpy()

        assert spaces[f"L{layer}"] == pytest.approx(expected, abs=1e-5)

    half = make_extractor(model, [1], half_precision=True)(waveform)["L1"]

    assert half.dtype == np.float32
    assert np.corrcoef(half.ravel(), spaces["L1"].ravel())[0, 1] > 0.99


def test_layers_are_checked() -> None:
    assert check_layers(None, 3) == [1, 2, 3]
    assert check_layers([3, 0, 3], 3) == [0, 3]

    with pytest.raises(
        ConfigError, match=r"between 0 \(the input of block 1\) and 3, the model's last .* but holds -1, 4"
    ):
        check_layers([4, 1, -1], 3)


def test_layer_quality_is_that_of_each_layer_by_itself(data_dir: Path) -> None:
    model = load_hubert(data_dir / "fairseq" / "tiny_post.pt")

    rng = np.random.default_rng(0)

    waveforms = [rng.standard_normal(12000).astype(np.float32) * np.repeat([0.01, 0.3, 0.1], 4000) for _ in range(12)]

    waveforms = [w.astype(np.float32) for w in waveforms]

    segments = {f"u{i}": [(0.0, 0.25, "a"), (0.25, 0.5, "b"), (0.5, 0.75, "c")] for i in range(12)}

    fit_on, judge_on = (
        Utterances(list(segments), lambda i: waveforms[i], indices) for indices in (range(8), range(8, 12))
    )

    quality = layer_quality(model, fit_on, judge_on, segments, frame_phones, num_clusters=6, seed=3, mfcc=True)

    layers = range(1, len(model.encoder.layers) + 1)

    expected_features = {"mfcc": [mfcc(w)[::2] for w in waveforms]}

    for layer in layers:
        expected_features[f"L{layer}"] = [f.numpy() for f in model.extract_features(waveforms, layer=layer)]

    assert list(quality) == list(expected_features)

    for space, found in quality.items():
        features = expected_features[space]

        stream = ArrayFeatureStream(features[:8], rate=50, description={})

        units = KMeansFitter(replace(QUICK_KMEANS, num_clusters=6)).fit(stream, seed=3).model

        expected = unit_quality((frame_phones(segments["u0"], len(f), 50), units.assign(f)[0]) for f in features[8:])

        assert found == expected


def test_minutes_limit_the_utterances() -> None:
    from hubert_plugin.audio import AudioPolicy

    sizes = np.full(100, 60 * frames.SAMPLE_RATE // 10, np.int64)

    manifest = Manifest(Path("m/train.tsv"), "train", Path("m"), [f"{i}.wav" for i in range(100)], sizes)

    some = utterances_of(manifest, AudioPolicy(), max_minutes=2.05, seed=0)

    assert len(some.indices) == 21
    assert some.indices == utterances_of(manifest, AudioPolicy(), max_minutes=2.05, seed=0).indices
    assert some.indices != utterances_of(manifest, AudioPolicy(), max_minutes=2.05, seed=1).indices
    assert sorted(utterances_of(manifest, AudioPolicy(), max_minutes=1e6).indices) == list(range(100))
