"""The page shows all numbers that there are, and is honest about what was not measured."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from page_data import make_page_data
from rendered_page import parse, rendered_page, text_of  # noqa: F401 - a fixture

from hubert_plugin.analysis.page.data import PageData, Round
from hubert_plugin.analysis.page.write import render_page


def test_all_numbers_are_on_the_page(page: str) -> None:
    data = make_page_data()

    text = text_of(parse(page))

    expected: list[str] = []

    for round_ in data.rounds:
        for q in (*round_.quality, *data.baseline.quality):
            expected += [f"{q.pnmi:.3f} ± {q.pnmi_std:.3f}"]
            expected += [f"{v:.3f}" for v in (q.phone_purity, q.cluster_purity, q.agreement, q.criterion)]

        expected += [f"{100 * s.value:.3f}" for s in round_.abx if s.value is not None]
        expected += [f"{s.value:.3f} ± {s.std:.3f}" for s in round_.cca if s.value is not None]

        for curve in round_.curves:
            is_share = "accuracy" in curve.metric

            expected += [f"{100 * v:.1f} %" if is_share else f"{v:.3f}" for v in curve.values if v is not None]

        for units in round_.unit_summaries:
            total = sum(units.counts)

            expected += [f"{100 * c / total:.2f} %" for c in units.counts]
            expected += [f"{1000 * s:.0f}" for s in units.unit_run_seconds if s is not None]
            expected += [f"{100 * n / sum(units.run_lengths):.1f} %" for n in units.run_lengths]
            expected += [f"{units.entropy_bits:.2f} bits"]

        for result in (*round_.results, *round_.fine_tuning):
            assert result.value is not None

            expected.append(f"{100 * result.value:.1f} %" if result.unit == "%" else f"{result.value:.3f} bits")

        expected += [round_.name, round_.features, round_.units, round_.training, *round_.notes]

        assert round_.choice is not None

        expected.append(round_.choice.reason)

    expected += ["41 s", "40.1 kB", "2 cores", *(s.command for s in data.steps), *data.versions.values(), *data.notes]

    missing = [e for e in expected if " ".join(e.split()) not in text]

    assert not missing

    assert data.configuration in next(parse(page).iter("pre")).itertext()


def test_the_rounds_are_compared_at_the_number_of_units_of_the_first(page: str) -> None:
    data = make_page_data()

    cards = [text_of(e) for e in parse(page).iter("div") if e.get("class") == "card"]

    mfcc = next(q.pnmi for q in data.baseline.quality if q.num_clusters == 4)

    assert mfcc is not None and cards[0].startswith("MFCC") and f"{mfcc:.3f}" in cards[0]

    for card, round_ in zip(cards[1:], data.rounds, strict=True):
        best = max((q for q in round_.quality if q.num_clusters == 4), key=lambda q: q.pnmi or 0.0)

        assert best.pnmi is not None

        assert f"best layer: {best.space[1:]}" in card and f"{best.pnmi:.3f}" in card and "K = 4" in card
        assert f"{best.pnmi - mfcc:+.3f} against MFCC" in card

        (units,) = round_.unit_summaries

        assert units.quality is not None and f"learned from units of {units.quality.pnmi:.3f}" in card


def test_what_was_not_measured_is_said_to_be_so() -> None:
    bare = PageData(
        title="t",
        created="2026-01-01T00:00:00",
        rounds=[Round(name="Round 1", features="MFCC", units="k-means, K = 100", training="250,000 updates")],
    )

    root = parse(render_page(bare))

    (section,) = (s for s in root.iter("section") if s.get("id") == "round-1")

    assert text_of(section).count("not measured") >= 6 and not list(section.iter("svg"))

    (summary,) = (s for s in root.iter("section") if s.get("id") == "summary")

    numbers = re.findall(r"\d+\.\d+", text_of(summary))

    assert not numbers and "not measured" in text_of(summary)


def test_a_page_without_rounds_can_be_written() -> None:
    parse(render_page(PageData(title="t", created="now")))


@pytest.mark.parametrize("k", [2, 100, 2000])
def test_few_and_many_units_can_be_shown(k: int) -> None:
    data = make_page_data()

    summary = replace(data.rounds[0].unit_summaries[0], counts=[1] * k, unit_run_seconds=[0.02] * k, run_lengths=[k])

    page = render_page(replace(data, rounds=[replace(data.rounds[0], unit_summaries=[summary])]))

    parse(page)

    assert "nan" not in re.findall(r'(?:x|y|cx|cy|width|height)="([^"]*)"', page)


def test_missing_values_leave_gaps_and_no_numbers() -> None:
    data = make_page_data()

    first = data.rounds[0]

    curves = [replace(c, values=[None, *c.values[1:]]) for c in first.curves]

    quality = [replace(q, pnmi=None, pnmi_std=None) for q in first.quality]

    page = render_page(replace(data, rounds=[replace(first, curves=curves, quality=quality)]))

    assert "None" not in text_of(parse(page))
