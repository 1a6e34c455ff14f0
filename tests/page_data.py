"""A report with everything in it, small, with text that would be dangerous if it were not escaped."""

from __future__ import annotations

import random

from hubert_plugin.analysis.page.data import (
    Baseline,
    Curve,
    Example,
    LayerChoice,
    PageData,
    Result,
    Round,
    Segment,
    SpaceQuality,
    SpaceScore,
    Step,
    UnitSummary,
    UnitTrack,
)

DANGEROUS_ID = "<script>alert(1)</script>/a&b\"c'.flac"


def make_page_data() -> PageData:
    """Return two rounds of a model of three layers, at two numbers of units. The numbers are drawn, from a seed."""
    rng = random.Random(0)

    def value(low: float = 0.1, high: float = 0.9) -> float:
        return rng.uniform(low, high)

    def quality(space: str, k: int) -> SpaceQuality:
        return SpaceQuality(
            space=space,
            num_clusters=k,
            pnmi=value(),
            pnmi_std=value(0.001, 0.01),
            phone_purity=value(),
            cluster_purity=value(),
            agreement=value(),
            criterion=value(),
        )

    def scores(space: str, tasks: tuple[str, ...], std: float | None) -> list[SpaceScore]:
        return [SpaceScore(space=space, task=task, value=value(), std=std) for task in tasks]

    def make_round(nr: int) -> Round:
        layers = [f"L{layer}" for layer in (1, 2, 3)]

        return Round(
            name=f"Round {nr}",
            features="MFCC" if nr == 1 else "layer 2 of round 1",
            units="k-means, K = 4",
            training="preset demo, 300 updates",
            results=[
                Result(name="Masked accuracy", value=value(), unit="%", on="valid"),
                Result(name="Masked loss", value=value(2, 5), unit="bits", on="valid"),
            ],
            curves=[
                Curve(split=split, metric=metric, steps=[100, 200, 300], values=[value() for _ in range(3)])
                for split in ("train", "valid")
                for metric in ("masked_loss_bits", "unmasked_loss_bits", "masked_accuracy", "unmasked_accuracy")
            ],
            quality=[quality(space, k) for space in layers for k in (4, 8)],
            abx=[s for space in layers for s in scores(space, ("triphone within", "triphone across"), None)],
            cca=[s for space in layers for s in scores(space, ("words",), 0.02)],
            choice=LayerChoice(space="L2", measure="PNMI", reason="the highest of three layers."),
            unit_summaries=[
                UnitSummary(
                    name="km",
                    source="MFCC",
                    split="valid",
                    rate=100,
                    counts=[rng.randrange(1, 1000) for _ in range(3)] + [0],
                    num_dead=1,
                    entropy_bits=value(1, 2),
                    mean_run_seconds=value(0.02, 0.09),
                    unit_run_seconds=[value(0.02, 0.09) for _ in range(3)] + [None],
                    run_lengths=[rng.randrange(1, 500) for _ in range(6)],
                    quality=quality("mfcc", 4),
                )
            ],
            fine_tuning=[Result(name="WER", value=value(), unit="%", on="valid")] if nr == 2 else [],
            notes=["Layers are <1-based> & few."],
        )

    return PageData(
        title='A "small" <report> & more',
        created="2026-01-02T03:04:05+00:00",
        corpus={"corpus": "demo", "training audio": "1.0 h"},
        versions={"fairseq2-hubert": "0.1.0", "torch": "2.9.1"},
        configuration="rounds:\n  - features: {name: mfcc}  # <&>\n",
        measured_on="split valid: 10 minutes",
        criterion_name="consistency",
        baseline=Baseline(
            quality=[quality("mfcc", k) for k in (4, 8)],
            abx=scores("mfcc", ("triphone within", "triphone across"), None),
            cca=scores("mfcc", ("words",), 0.02),
        ),
        rounds=[make_round(1), make_round(2)],
        examples=[
            Example(
                utterance=DANGEROUS_ID,
                duration=0.5,
                spectrogram=[[rng.randrange(256) for _ in range(8)] for _ in range(48)],
                frame_rate=100,
                max_frequency=8000.0,
                tracks=[
                    UnitTrack(name="MFCC", rate=100, units=[i // 7 for i in range(48)]),
                    UnitTrack(name="round 1", rate=50, units=[i // 5 for i in range(24)]),
                ],
                phones=[Segment(start=0.0, end=0.2, name="SIL"), Segment(start=0.2, end=0.5, name="<AA>")],
                words=[Segment(start=0.2, end=0.5, name="AH & OH")],
            )
        ],
        steps=[
            Step(
                name="round 1 / cluster",
                command='fairseq2 recipe hubert cluster out --config features.name="mfcc" <x>',
                state="done",
                started="2026-01-02T03:00:00+00:00",
                seconds=41.25,
                size_bytes=40_125,
                cost="2 cores",
                reason="it was missing",
            ),
            Step(name="round 2 / pretrain", command="fairseq2 recipe hubert pretrain out2", state="failed"),
        ],
        notes=["Round 2 has not ended."],
    )
