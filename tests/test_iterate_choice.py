"""The layer that the next round learns from: what it is chosen by, and what is said of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from refined import made_refinement, original_refinement  # noqa: F401 - fixtures
from refinement import Refinement

from hubert_plugin.errors import ConfigError
from hubert_plugin.refinement.choice import choose_layer
from hubert_plugin.refinement.config import ChoiceSection


def analysis(**spaces: dict[str, Any]) -> dict[str, Any]:
    return {"spaces": spaces}


def units_at(k: int, **measures: float | None) -> dict[str, Any]:
    return {"units": {str(k): measures}}


CHOICES: list[tuple[str, dict[str, Any], dict[str, Any], int, str]] = [
    (
        "PNMI where phones are known; MFCC is no layer",
        analysis(mfcc=units_at(50, pnmi=0.9), L1=units_at(50, pnmi=0.2), L2=units_at(50, pnmi=0.3)),
        {},
        2,
        "pnmi",
    ),
    (
        "the lower of equals",
        analysis(L10=units_at(50, pnmi=0.3), L9=units_at(50, pnmi=0.3), L2=units_at(50, pnmi=0.1)),
        {},
        9,
        "pnmi",
    ),
    (
        "ABX error, lower is better, mean over the tasks that all have",
        analysis(
            L1={"abx": {"within": {"error": 0.10}, "across": {"error": 0.30}}},
            L2={"abx": {"within": {"error": 0.12}, "across": {"error": 0.20}, "more": {"error": 0.0}}},
        ),
        {},
        2,
        "abx",
    ),
    (
        "the criterion without labels, if there is nothing else",
        analysis(L1=units_at(50, pnmi=None, criterion=0.7), L2=units_at(50, pnmi=None, criterion=0.6)),
        {},
        1,
        "unsupervised",
    ),
    (
        "what the configuration says",
        analysis(L1={**units_at(50, pnmi=0.1), "abx": {"w": {"error": 0.1}}},
                 L2={**units_at(50, pnmi=0.2), "abx": {"w": {"error": 0.2}}}),
        {"measure": "abx"},
        1,
        "abx",
    ),
    (
        "only layers that are allowed",
        analysis(L1=units_at(50, pnmi=0.1), L2=units_at(50, pnmi=0.2), L3=units_at(50, pnmi=0.3)),
        {"layers": [1, 2]},
        2,
        "pnmi",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "section", "layer", "measure"), [c[1:] for c in CHOICES], ids=[c[0] for c in CHOICES]
)
def test_the_layer_is_chosen_by(found: dict[str, Any], section: dict[str, Any], layer: int, measure: str) -> None:
    choice = choose_layer(found, ChoiceSection(**section), num_clusters=50, source="round1/analyze")

    assert (choice.layer, choice.measure) == (layer, measure)
    assert f"Layer {layer} has the {'lowest' if measure == 'abx' else 'highest'}" in choice.reason


@pytest.mark.parametrize(("wanted", "used"), [(500, 500), (400, 100), (1000, 500), (20, 50), (None, 500)])
def test_layers_are_compared_at_the_next_rounds_number_of_units_or_one_near(wanted: int | None, used: int) -> None:
    sizes = {str(k): {"pnmi": 0.1} for k in (50, 100, 500)}

    choice = choose_layer(analysis(L1={"units": sizes}), ChoiceSection(), num_clusters=wanted, source="x")

    assert choice.num_clusters == used
    assert ("which were not measured" in choice.reason) == (wanted is not None and wanted != used)


@pytest.mark.parametrize(
    ("found", "section", "phrase"),
    [
        (analysis(L1=units_at(50, pnmi=None)), {}, "No layer can be chosen by PNMI or ABX error or view consistency"),
        (analysis(L1=units_at(50, pnmi=0.1)), {"measure": "abx"}, "No layer can be chosen by ABX error"),
        (analysis(L1=units_at(50, pnmi=0.1)), {"layers": [7]}, "`choice.layers` allows [7], but x measured L1"),
        ({}, {}, "No layer can be chosen"),
    ],
)
def test_nothing_to_choose_by_is_said(found: dict[str, Any], section: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_layer(found, ChoiceSection(**section), num_clusters=50, source="x")

    assert phrase in str(caught.value)


def test_the_criterion_is_called_what_the_analysis_calls_it() -> None:
    from hubert_plugin.analysis.unsupervised import CRITERION_NAME
    from hubert_plugin.refinement.choice import _NAMES

    assert _NAMES["unsupervised"] == CRITERION_NAME


def test_the_layer_with_the_highest_pnmi_at_the_next_rounds_size_is_chosen_and_said(made: Refinement) -> None:
    spaces = json.loads((made.out / "round1/analyze/analysis.json").read_text())["spaces"]

    best = best_layer(spaces)

    choice = json.loads((made.out / "round2/choice.json").read_text())

    assert f"L{choice['layer']}" == best
    assert choice["measure"] == "pnmi"
    assert choice["num_clusters"] == 50
    assert choice["values"][best] == spaces[best]["units"]["50"]["pnmi"]
    text = made.run()

    assert f"Layer {best[1]} has the highest PNMI at K = 50" in text

    # And at the end, what came out of it all.
    analyses = [json.loads((made.out / f"round{n}/analyze/analysis.json").read_text()) for n in (1, 2)]

    units = [a["label_sets"]["km"]["quality"]["pnmi"] for a in analyses]

    last = analyses[1]["spaces"]

    values = [s[b]["units"]["50"]["pnmi"] for s, b in ((spaces, "mfcc"), (spaces, best), (last, best_layer(last)))]

    assert (
        f"PNMI of the best layers at K = 50, on the validation split: MFCC {values[0]:.3f}, "
        f"round1 {values[1]:.3f} ({best}, from units of {units[0]:.3f}), "
        f"round2 {values[2]:.3f} ({best_layer(last)}, from units of {units[1]:.3f})."
    ) in text


def test_a_layer_is_chosen_in_another_way_after_it_was_measured_for_it(made: Refinement) -> None:
    """What was measured before holds nothing to choose by: neither plan nor check must stop at that."""
    made.config["choice"] = {"measure": "unsupervised"}

    lines = made.run("--plan").splitlines()

    (state,) = [line for line in lines if line.startswith("  round2 / cluster")]

    assert "again, because criterion is true now" in next(line for line in lines if "round1 / analyze" in line)
    assert state.endswith("done; again if round1 / analyze gives another result")
    assert any(line.strip() == "the layer is chosen when it is measured" for line in lines)

    text = made.run()

    assert "decided by view consistency, as `choice.measure` says" in text
    assert "round1/analyze" in made.done()


def test_a_plan_refuses_a_choice_that_what_is_measured_does_not_allow(made: Refinement) -> None:
    made.config["choice"] = {"measure": "abx"}

    for options in ((), ("--plan",)):
        assert "No layer can be chosen by ABX error: round1/analyze" in made.run(*options, code=2)


def best_layer(spaces: dict[str, Any]) -> str:
    return max(("L1", "L2", "L3", "L4"), key=lambda s: spaces[s]["units"]["50"]["pnmi"])
