"""What a refinement is: where the audio comes from, and what is done with it, round by round."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hubert_plugin.errors import ConfigError, format_problems

PREVIOUS: Final = "previous"
"""Stands for the model of the round before, where a model is named."""

PUBLISHED: Final = "published"
"""Stands for the configuration's ``model``, where a model is named."""

AUTO: Final = "auto"

MFCC: Final = "mfcc"

HUBERT_LAYER: Final = "hubert_layer"

MEASURES: Final = (AUTO, "pnmi", "abx", "unsupervised")

VERBS: Final = ("manifest", "cluster", "label", "pretrain", "analyze", "finetune")
"""The verbs that a step can be."""


@dataclass(kw_only=True)
class CorpusSection:
    """The audio, and what is known about it."""

    manifest_dir: Path | None = None
    """The folder that holds the manifests."""

    source: Path | None = None
    """In place of ``manifest_dir``: audio, whose manifests are made in ``OUT/manifest``."""

    manifest: dict[str, object] = field(default_factory=dict)
    """With ``source``: further options of ``manifest``, such as ``speaker_pattern``."""

    demo: dict[str, object] | None = None
    """In place of both: the demo corpus, with these options (``{}``: as it is)."""

    train_split: str = "train"
    """The split that is clustered and trained on."""

    valid_split: str = "valid"
    """The split that is validated on, and on which units and layers are measured."""

    alignment: dict[str, object] = field(default_factory=dict)
    """The phone times of ``valid_split``: options ``alignment`` of ``analyze``. The demo corpus has them."""

    words: dict[str, object] = field(default_factory=dict)
    """The word times of ``valid_split``: options ``words`` of ``analyze``."""

    items: list[Path] = field(default_factory=list)
    """ABX item files of ``valid_split``."""


@dataclass(kw_only=True)
class FeaturesSection:
    """What is clustered."""

    name: str = MFCC
    """``mfcc``, ``hubert_layer``, or another registered feature source."""

    model: str = PREVIOUS
    """Of ``hubert_layer``: ``previous``, the model of the round before; ``published``, the one that ``model`` names; or
    a model card, a checkpoint file, the folder of a run."""

    layer: int | str = AUTO
    """Of ``hubert_layer``: a layer, counted from 1, or ``auto``: the best one by measure."""

    config: dict[str, object] = field(default_factory=dict)
    """Further options of the feature source."""


@dataclass(kw_only=True)
class UnitsSection:
    """How it is clustered."""

    name: str = "kmeans"
    """``kmeans``, ``kmeans_ensemble``, ``product``, ``hierarchy``, or another registered unit model."""

    config: dict[str, object] = field(default_factory=dict)
    """Options of the unit model, such as ``num_clusters``."""


@dataclass(kw_only=True)
class VerbSection:
    """A step that is a training."""

    preset: str | None = None
    """A preset of the verb. ``null``: its defaults."""

    config: dict[str, object] = field(default_factory=dict)
    """What differs from the preset."""


@dataclass(kw_only=True)
class RoundSection:
    """Features → units → labels → training → measurement."""

    name: str | None = None
    """The folder of the round. ``null``: ``round1``, ``round2``, …"""

    features: FeaturesSection | None = None
    """What is clustered. ``null``: MFCC in the first round, then the best layer of the model before."""

    units: UnitsSection | None = None
    """How. Must be given."""

    cluster: dict[str, object] = field(default_factory=dict)
    """Further options of ``cluster``, such as ``seed``."""

    label: dict[str, object] = field(default_factory=dict)
    """Further options of ``label``, such as ``format``."""

    pretrain: VerbSection = field(default_factory=VerbSection)
    """The training."""

    analyze: dict[str, object] = field(default_factory=dict)
    """Further options of ``analyze``, such as ``layers`` and ``num_clusters``."""

    finetune: VerbSection | None = None
    """If given, a recogniser is trained on the model of the round, or a probe of its layers."""

    keep: str = "all"
    """``all``: checkpoints stay as training left them. ``model``: when the round is over, only the last model stays."""


@dataclass(kw_only=True)
class ChoiceSection:
    """How ``layer: auto`` is decided."""

    measure: str = AUTO
    """``pnmi``, ``abx``, ``unsupervised``; ``auto``: the first of them for which there is what it needs."""

    layers: list[int] | None = None
    """The layers that may be chosen. ``null``: all that are measured."""


@dataclass(kw_only=True)
class CostSection:
    """What the estimate of ``--plan`` rests on."""

    tflops: float | None = None
    """What a process does in a second, in 10¹² operations. ``null``: 100 where there is a GPU, else 0.06 for each core;
    neither was measured on your machine."""


@dataclass(kw_only=True)
class RefinementConfig:
    """Configures a refinement."""

    title: str = "Refinement"
    """What the report is called."""

    dataset: CorpusSection = field(default_factory=CorpusSection)
    """The audio."""

    # fairseq2 asks of a field of this name whether its type is a class, and ours are read the same way.
    model: str = ""
    """A published model (a card, a file, the folder of a run), which rounds can name as ``published``."""

    rounds: list[RoundSection] = field(default_factory=list)
    """What is done, in this order."""

    options: dict[str, dict[str, object]] = field(default_factory=dict)
    """By verb, options for all rounds: ``{pretrain: {trainer: {…}}}``. What a round says of its own counts more."""

    choice: ChoiceSection = field(default_factory=ChoiceSection)
    """How the layer of the next round is chosen."""

    num_examples: int = 4
    """How many utterances the report shows with their units."""

    on_code_change: str = "keep"
    """What happens to results that another version of the code made: ``keep`` (and say so), or ``redo``."""

    keep_replaced: bool = True
    """If ``True``, trainings that are done again, since their configuration changed, are moved to ``OUT/replaced``
    instead of deleted."""

    command: list[str] = field(default_factory=list)
    """How verbs are started: what stands before ``recipe hubert VERB``, such as a container's command. Empty: this
    Python with ``-m hubert_plugin``."""

    cost: CostSection = field(default_factory=CostSection)
    """What the estimate of ``--plan`` rests on."""

    def round_name(self, idx: int) -> str:
        """Return the folder of a round."""
        return self.rounds[idx].name or f"round{idx + 1}"

    def features_of(self, idx: int) -> FeaturesSection:
        """Return what a round clusters."""
        given = self.rounds[idx].features

        if given is not None:
            return given

        return FeaturesSection() if idx == 0 else FeaturesSection(name=HUBERT_LAYER)

    def units_of(self, idx: int) -> UnitsSection:
        """Return how a round clusters."""
        return self.rounds[idx].units or UnitsSection()

    def model_of(self, idx: int, name: str) -> str:
        """Return the model that ``name`` stands for in a round; of the round before, the name of its run's folder
        below OUT."""
        if name == PREVIOUS:
            return f"{self.round_name(idx - 1)}/pretrain"

        return self.model if name == PUBLISHED else name

    def check(self) -> None:
        """Check what can be checked without a look at files.

        :raises ConfigError: Names all that is wrong.
        """
        problems = [*self._corpus_problems(), *self._round_problems()]

        for verb in self.options:
            if verb not in VERBS:
                problems.append(f"`options` is by verb ({', '.join(VERBS)}), but has '{verb}'.")

        if self.choice.measure not in MEASURES:
            problems.append(
                f"`choice.measure` must be one of {', '.join(MEASURES)}, but is '{self.choice.measure}' instead."
            )

        if self.on_code_change not in ("keep", "redo"):
            problems.append(f"`on_code_change` must be keep or redo, but is '{self.on_code_change}' instead.")

        if self.num_examples < 0:
            problems.append(f"`num_examples` must be 0 or greater, but is {self.num_examples} instead.")

        if self.cost.tflops is not None and not self.cost.tflops > 0:
            problems.append(f"`cost.tflops` must be greater than 0, but is {self.cost.tflops} instead.")

        if problems:
            raise ConfigError(format_problems("The configuration of the refinement cannot be used:", problems))

    def _corpus_problems(self) -> list[str]:
        section = self.dataset

        given = [n for n in ("manifest_dir", "source", "demo") if getattr(section, n) is not None]

        if len(given) == 1:
            return []

        if given:
            return [f"`dataset` must have one origin of audio, but has {len(given)}: {', '.join(given)}."]

        return [
            "`dataset.manifest_dir` must be the folder that holds the manifests (`fairseq2 recipe hubert manifest` "
            "makes them), or `dataset.source` a folder of audio, or `dataset.demo` be `{}`."
        ]

    def _round_problems(self) -> list[str]:
        if not self.rounds:
            return ["`rounds` must list at least one round: `[{units: {name: kmeans, config: {num_clusters: 100}}}]`."]

        problems: list[str] = []

        names: dict[str, int] = {}

        for idx, round_ in enumerate(self.rounds):
            where, name = f"rounds[{idx}]", self.round_name(idx)

            if name in RESERVED or not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
                problems.append(
                    f"`{where}.name` must consist of letters, digits, '-' and '_' and be none of "
                    f"{', '.join(sorted(RESERVED))}, but is '{name}'."
                )

            if names.setdefault(name, idx) != idx:
                problems.append(f"`{where}.name` is '{name}', but so is that of rounds[{names[name]}].")

            if round_.units is None:
                problems.append(
                    f"`{where}` has no `units`: say how frames become units, for example "
                    "`units: {name: kmeans, config: {num_clusters: 100}}`."
                )

            if round_.keep not in ("all", "model"):
                problems.append(f"`{where}.keep` must be all or model, but is '{round_.keep}' instead.")

            problems += self._feature_problems(idx, where)

        return problems

    def _feature_problems(self, idx: int, where: str) -> list[str]:
        features = self.features_of(idx)

        problems = []

        source = self.rounds[idx].pretrain.config.get("init")

        init = source.get("source") if isinstance(source, dict) else None

        if init in (PREVIOUS, PUBLISHED):
            problems += self._model_problems(idx, f"{where}.pretrain.config.init.source", str(init))

        if features.name != HUBERT_LAYER:
            return problems

        problems += self._model_problems(idx, f"{where}.features.model", features.model)

        if isinstance(features.layer, str) and features.layer != AUTO:
            problems.append(f"`{where}.features.layer` must be a number or auto, but is '{features.layer}' instead.")
        elif isinstance(features.layer, int) and features.layer < 0:
            problems.append(f"`{where}.features.layer` must be 0 or greater, but is {features.layer} instead.")

        return problems

    def _model_problems(self, idx: int, where: str, name: str) -> list[str]:
        if name == PREVIOUS and idx == 0:
            return [
                f"`{where}` is 'previous', but there is no round before the first, so no model whose layer could be "
                "taken (`layer: auto` or a number): begin with `features: {name: mfcc}`, or name a model that is "
                "there (a card, a file, the folder of a run)."
            ]

        if name == PUBLISHED and not self.model:
            return [f"`{where}` is 'published', so `model` must name a model: a card, a file, the folder of a run."]

        return [] if name else [f"`{where}` must name a model: previous, published, a card, a file or a folder."]


RESERVED: Final = frozenset({"logs", "manifest", "replaced", "report", "state", "slurm"})
"""Folders below OUT that are no rounds."""
