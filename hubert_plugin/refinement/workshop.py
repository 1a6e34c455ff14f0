"""What steps are made from: the configuration, the corpus, and what earlier steps left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from hubert_plugin.errors import ConfigError, LabelError, ManifestError
from hubert_plugin.refinement.choice import Choice, choose_layer
from hubert_plugin.refinement.config import RefinementConfig
from hubert_plugin.refinement.digests import Digests
from hubert_plugin.refinement.steps import Step, result_files

UNKNOWN = "unknown yet"


class NotYet(Exception):
    """A step's options or inputs are not known before an earlier step is done."""


@final
@dataclass
class Workshop:
    """Answers the questions of steps."""

    config: RefinementConfig

    out: Path
    """OUT, absolute."""

    digests: Digests

    manifest_dir: Path | None = None
    """The folder of the manifests, once it is known."""

    dry: bool = False
    """If true, what is not there is answered with a place-holder instead of :class:`NotYet`: for plans."""

    steps: dict[str, Step] = field(default_factory=dict)
    """All steps by key."""

    choices: dict[int, Choice] = field(default_factory=dict)
    """The layer choices by round."""

    refusals: dict[int, ConfigError] = field(default_factory=dict)
    """In a plan, by round: why what is measured so far gives no choice. It may be measured again before."""

    reads: set[str] = field(default_factory=set)
    """The steps whose results were asked for."""

    def manifest(self) -> str:
        """Return the folder of the manifests as commands name it."""
        if self.manifest_dir is None:
            if self.dry:
                return "manifest"

            raise NotYet("the manifests are not made yet")

        return self.place(self.manifest_dir)

    def manifest_digest(self, split: str) -> str:
        """Return what tells two manifests apart.

        :raises ManifestError: There is none of that name.
        """
        self.reads.add("manifest")

        if self.manifest_dir is None:
            return self._unknown("the manifests are not made yet")

        path = self.manifest_dir / f"{split}.tsv"

        try:
            return self.digests.of_manifest(path)
        except OSError as ex:
            if self.dry and self.config.dataset.manifest_dir is None:
                return UNKNOWN

            raise ManifestError(
                f"The manifest '{path}' cannot be read: {ex.strerror or ex}. `fairseq2 recipe hubert manifest` makes "
                "the manifests train.tsv and valid.tsv; other names are given by `dataset.train_split` and "
                "`dataset.valid_split`."
            ) from ex

    def result_digest(self, key: str) -> str:
        """Return what tells two results of a step apart."""
        self.reads.add(key)

        step = self.steps[key]

        files = result_files(step, self.out)

        if not files:
            return self._unknown(f"{step.title} is not done yet")

        return self.digests.of_files(self.out / key, files)

    def model_digest(self, name: str) -> str:
        """Return what tells two models apart."""
        if name in self.steps:
            return self.result_digest(name)

        try:
            return self.digests.of_model(name)
        except OSError as ex:
            raise ConfigError(f"The model '{name}' cannot be read: {ex}.") from ex

    def file_digest(self, path: Path) -> str:
        """Return the digest of a file or folder that the configuration names."""
        try:
            return self.digests.of_path(path)
        except OSError as ex:
            raise LabelError(f"'{path}' cannot be read: {ex.strerror or ex}.") from ex

    def place(self, path: Path) -> str:
        """Return a place as commands name it: relative to OUT if it lies there, else absolute."""
        try:
            return path.relative_to(self.out).as_posix()
        except ValueError:
            return str(path)

    def choice(self, idx: int) -> Choice | None:
        """Return the layer that a round takes; ``None`` if it is not known yet and this is a plan.

        :raises NotYet: It is not known yet.
        :raises ConfigError: There is nothing to choose by.
        """
        key = choice_source(self.config, idx)

        self.reads.add(key)

        path = self.out / key / "analysis.json"

        try:
            analysis: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if self.dry:
                return None

            raise NotYet(f"the layers are not measured yet ('{path}')") from None

        try:
            choice = choose_layer(
                analysis,
                self.config.choice,
                num_clusters=_num_units(self.config, idx),
                source=key,
            )
        except ConfigError as ex:
            if not self.dry:
                raise

            # It was measured with other options, perhaps, and will be measured again before this is asked for.
            self.refusals[idx] = ex

            return None

        self.choices[idx] = choice

        return choice

    def _unknown(self, reason: str) -> str:
        if self.dry:
            return UNKNOWN

        raise NotYet(reason)


def choice_source(config: RefinementConfig, idx: int) -> str:
    """Return the step whose measurement a round's layer is chosen by."""
    from hubert_plugin.refinement.config import PREVIOUS

    if config.features_of(idx).model == PREVIOUS:
        return f"{config.round_name(idx - 1)}/analyze"

    return f"{config.round_name(idx)}/layers"


def _num_units(config: RefinementConfig, idx: int) -> int | None:
    from hubert_plugin.refinement.units import num_units

    return num_units(config.units_of(idx))
