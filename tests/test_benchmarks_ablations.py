"""The ablations: what they say follows from the numbers, and an interrupted run goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from processes import command_server

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT))

from benchmarks import ablations  # noqa: E402
from benchmarks.ablation_tables import ALPHAS, CELLS, CLAIMS, render  # noqa: E402


def make_results(**pnmi: float) -> dict[str, dict[str, Any]]:
    return {
        c.name: {
            "label_pnmi": dict.fromkeys(c.labels, 0.2),
            "mfcc_pnmi": 0.25,
            "best_layer": "L2",
            "best_pnmi": pnmi[c.name],
            "masked_accuracy": dict.fromkeys(c.labels, 0.125),
        }
        for c in CELLS
        if c.name in pnmi
    }


def test_verdicts_follow_from_the_numbers() -> None:
    results = make_results(**{"k100_alpha1": 0.30, "k100_alpha0.5": 0.28, "k100_alpha0": 0.279, "ensemble_50_100": 0.2})

    lines = [line for line in render(results, 1000, 100).splitlines() if line.startswith("- ")]

    assert [line.split("): ")[1] for line in lines] == [
        "agrees (PNMI 0.300 against 0.280)",
        "too close to tell (PNMI 0.280 against 0.279)",
        "agrees (PNMI 0.300 against 0.279)",
        "does not agree (PNMI 0.200 against 0.280)",
    ]


def test_tables_have_what_is_known_and_say_what_is_not() -> None:
    text = render(make_results(**{"k50_alpha1": 0.31, "k100_alpha0.5": 0.28}), 1000, 100)

    assert "| 50 | 0.200 | 0.310 (L2), 12.5 % | not run | not run |" in text

    assert "Table VI" not in text and "MS-HuBERT" not in text and "Against the paper" not in text

    assert render({}, 1000, 100) == "No cell is known."


def test_all_that_is_compared_is_computed_and_cells_have_names_of_their_own() -> None:
    names = [c.name for c in CELLS]

    assert len(names) == len(set(names))

    assert {n for claim in CLAIMS for n in (claim.better, claim.worse)} <= set(names)

    assert sum("V" in c.tables for c in CELLS) == 3 * len(ALPHAS)


@pytest.fixture
def run_verbs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Verbs run in forks of one interpreter, and are written down."""
    commands: list[list[str]] = []

    def run(command: Sequence[str], **kwargs: Any) -> Any:
        commands.append(list(command[3:]))

        process = command_server().run(*command[3:], timeout=240)

        print(process.raw, file=kwargs["stdout"])

        class Completed:
            returncode = process.poll()

        return Completed

    monkeypatch.setattr(ablations.subprocess, "run", run)

    return commands


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ablations", *arguments])

    ablations.main()


@pytest.mark.slow
def test_an_interrupted_run_goes_on(
    tmp_path: Path, run_verbs: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / "out"), "--quick", "--demo", f"cache_dir={tmp_path / 'cache'}", "--cells"]

    run_main(monkeypatch, *arguments, "k50_alpha1")

    assert [c[2] for c in run_verbs] == ["cluster", "label", "pretrain", "analyze"]

    run_verbs.clear()

    # Another cell on the same units: labels are not made again. The first cell is not touched.
    run_main(monkeypatch, *arguments, "k50_alpha1", "ensemble_50_100")

    assert [c[2] for c in run_verbs] == ["pretrain", "analyze"]

    results = json.loads((tmp_path / "out" / "ablations.json").read_text())

    assert set(results) == {"k50_alpha1", "ensemble_50_100"}

    ensemble = results["ensemble_50_100"]

    assert set(ensemble["label_pnmi"]) == set(ensemble["masked_accuracy"]) == {"km50", "km100"}
    assert set(ensemble["layer_pnmi"]) == {"L1", "L2", "L3", "L4"}
    assert ensemble["best_pnmi"] == max(ensemble["layer_pnmi"].values())

    shown = capsys.readouterr().out

    assert f"{ensemble['best_pnmi']:.3f} ({ensemble['best_layer']})" in shown

    # Other settings are other numbers.
    run_verbs.clear()

    run_main(monkeypatch, *arguments, "k50_alpha1", "--seed", "7")

    assert [c[2] for c in run_verbs] == ["pretrain", "analyze"]


@pytest.mark.slow
def test_a_verb_that_fails_is_told_with_its_log_and_command(
    tmp_path: Path, run_verbs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as info:
        run_main(
            monkeypatch,
            str(tmp_path / "out"),
            "--quick",
            "--demo",
            f"cache_dir={tmp_path / 'cache'}",
            "--config",
            "nothing.of.the.kind=1",
            "--cells",
            "k50_alpha1",
        )

    assert "hubert pretrain" in str(info.value) and "ended with 2; its log:" in str(info.value)

    assert not (tmp_path / "out" / "ablations.json").exists()


def test_unknown_cells_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_main(monkeypatch, str(tmp_path), "--cells", "k7")

    assert "unknown cells k7; there are k50_alpha1" in capsys.readouterr().err
