"""All that the page shows, as plain data.

Nothing here computes anything, and nothing imports torch. What was not measured is ``None`` or an empty list; the page
says so, and never shows a number that is not here. ``gather.py`` fills the parts from the files of runs and analyses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from hubert_plugin.analysis.page.plain import dump_json, parse_json
from hubert_plugin.errors import ReportError

FORMAT: Final = "hubert-report/1"
"""Stands in every file, so that another version of this package can tell what it reads."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric over the updates of a training."""

    split: str
    """``train`` or ``valid``."""

    metric: str
    """``masked_loss_bits``, ``unmasked_loss_bits``, ``masked_accuracy``, ``unmasked_accuracy``, ``loss``,
    ``learning_rate`` or ``audio_seconds_per_second``; others are shown by the name they have."""

    steps: list[int]
    """The updates."""

    values: list[float | None]
    """As many; accuracies are shares between 0 and 1, losses bits per masked frame."""

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ReportError(
                f"A curve must have a value for each update, but '{self.metric}' ({self.split}) has {len(self.steps)} "
                f"updates and {len(self.values)} values."
            )


@dataclass(frozen=True, kw_only=True)
class SpaceQuality:
    """The units of one feature space at one number of units, held against phones."""

    space: str
    """``mfcc``, or ``L6`` for layer 6."""

    num_clusters: int
    """The number of units, K."""

    pnmi: float | None = None

    pnmi_std: float | None = None
    """The standard deviation over fits with other seeds; ``None`` if there was one."""

    phone_purity: float | None = None

    cluster_purity: float | None = None

    agreement: float | None = None
    """The normalised mutual information of the units of two fits; ``None`` if there was one."""

    criterion: float | None = None
    """The criterion that needs no phone times (``analysis.unsupervised``); higher is better."""


@dataclass(frozen=True, kw_only=True)
class SpaceScore:
    """Another measure of one feature space."""

    space: str

    task: str
    """Such as ``triphone within`` (ABX) or ``words`` (CCA)."""

    value: float | None
    """The ABX error as a share between 0 and 1, or the projection-weighted correlation."""

    std: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """Which layer's features the next round clusters."""

    space: str
    """Such as ``L6``."""

    measure: str
    """``PNMI``, ``ABX``, the name of the unsupervised criterion, or ``given`` if nobody measured."""

    reason: str
    """A sentence, with the numbers it rests on."""


@dataclass(frozen=True, kw_only=True)
class UnitSummary:
    """The units of one label set, on the split they were measured on."""

    name: str
    """The label set, such as ``km``."""

    source: str
    """What was clustered, such as ``MFCC`` or ``layer 6 of round 1``."""

    split: str
    """Such as ``valid``."""

    rate: int
    """Units per second."""

    counts: list[int]
    """How often each unit occurs, by number; its length is K."""

    num_dead: int

    entropy_bits: float | None

    mean_run_seconds: float | None
    """The mean length of a stretch of one unit."""

    unit_run_seconds: list[float | None] = field(default_factory=list)
    """The same for each unit by its number; ``None`` where it never occurs."""

    run_lengths: list[int] = field(default_factory=list)
    """How many stretches have a length of 1, 2, 3, … units; the last number counts all that are as long or longer."""

    quality: SpaceQuality | None = None
    """How the very labels match phones, where phone times are known."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A phone or word, with its times in seconds."""

    start: float

    end: float

    name: str


@dataclass(frozen=True, kw_only=True)
class UnitTrack:
    """The units of an utterance."""

    name: str
    """Whose they are, such as ``MFCC`` or ``round 1``."""

    rate: int
    """Units per second."""

    units: list[int]


@dataclass(frozen=True, kw_only=True)
class Example:
    """An utterance with its spectrogram, phones, and the units of all rounds one below the other."""

    utterance: str

    duration: float
    """Seconds."""

    spectrogram: list[list[int]]
    """Log-mel energies as grey levels from 0 to 255. *Shape:* (frames, bands), low bands first."""

    frame_rate: int
    """Frames of the spectrogram per second."""

    max_frequency: float
    """The upper end of the highest band, in Hz; bands are equally wide on the mel scale."""

    tracks: list[UnitTrack] = field(default_factory=list)

    phones: list[Segment] | None = None
    """``None`` if phone times are not known."""

    words: list[Segment] | None = None

    def __post_init__(self) -> None:
        if len({len(frame) for frame in self.spectrogram}) > 1:
            raise ReportError(f"All frames of a spectrogram must have equally many bands; '{self.utterance}' has not.")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number that a round ended with."""

    name: str
    """Such as ``Masked accuracy`` or ``WER``."""

    value: float | None

    unit: str = ""
    """``%`` (of a share between 0 and 1), ``bits``, or nothing."""

    on: str = ""
    """What it was measured on, such as ``valid``."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: features, units, a training on them, and what its layers are worth."""

    name: str
    """Such as ``Round 1``."""

    features: str
    """What was clustered, such as ``MFCC`` or ``layer 6 of round 1``."""

    units: str
    """How, such as ``k-means, K = 100``."""

    training: str
    """Such as ``preset base_it1, 250,000 updates``."""

    results: list[Result] = field(default_factory=list)

    curves: list[Curve] = field(default_factory=list)

    quality: list[SpaceQuality] = field(default_factory=list)
    """Of the trained model's layers."""

    abx: list[SpaceScore] = field(default_factory=list)
    """ABX errors of the layers."""

    cca: list[SpaceScore] = field(default_factory=list)
    """Correlations of the layers with words and phones."""

    choice: LayerChoice | None = None

    unit_summaries: list[UnitSummary] = field(default_factory=list)
    """The label sets it was trained on."""

    fine_tuning: list[Result] = field(default_factory=list)
    """Results of a recogniser on top, if any."""

    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """MFCC, measured like a layer."""

    quality: list[SpaceQuality] = field(default_factory=list)

    abx: list[SpaceScore] = field(default_factory=list)

    cca: list[SpaceScore] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the work."""

    name: str
    """Such as ``round 1 / cluster``."""

    command: str
    """The command that does it."""

    state: str
    """``done``, ``kept`` (from a former run), ``running``, ``failed`` or ``missing``."""

    started: str | None = None
    """ISO 8601."""

    seconds: float | None = None
    """The time it took."""

    size_bytes: int | None = None
    """What it left on disk."""

    cost: str | None = None
    """What it cost, in words, such as ``2 cores``."""

    reason: str | None = None
    """Why it was done, or not."""


@dataclass(frozen=True, kw_only=True)
class PageData:
    """All that the page shows."""

    title: str

    created: str
    """ISO 8601."""

    corpus: dict[str, str] = field(default_factory=dict)
    """What the work was done on, such as ``{"training audio": "1.0 h"}``, in the order shown."""

    versions: dict[str, str] = field(default_factory=dict)
    """Of this package, fairseq2, torch, …; of the machine, too."""

    configuration: str = ""
    """The configuration as YAML."""

    measured_on: str = ""
    """What quality was measured on, such as ``split valid: 30 minutes, 10 speakers``."""

    criterion_name: str = ""
    """What ``SpaceQuality.criterion`` is."""

    baseline: Baseline = field(default_factory=Baseline)

    rounds: list[Round] = field(default_factory=list)

    examples: list[Example] = field(default_factory=list)

    steps: list[Step] = field(default_factory=list)

    notes: list[str] = field(default_factory=list)
    """What a reader should know, such as that a round has not ended."""

    format: str = FORMAT

    def to_json(self) -> str:
        """Return the data as JSON text; what is not a finite number becomes ``null``."""
        return dump_json(self)

    @staticmethod
    def from_json(text: str) -> PageData:
        """Read what :meth:`to_json` wrote.

        :raises ReportError: It is no JSON, of another format, or something is missing, unknown or of another type; all
            such problems are told at once.
        """
        return parse_json(PageData, text, FORMAT)
