"""The configuration of ``export``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.models.export import EXPORT_FORMATS


@dataclass(kw_only=True)
class HubertExportConfig(Validatable):
    """Configures ``fairseq2 recipe hubert export``."""

    # Not `str | None`: fairseq2 asks whether the type of a key `model` is a class of its own.
    model: str = ""
    """What is exported: a model card, a checkpoint file or the folder of a run, whatever ``load_hubert`` takes."""

    formats: list[str] = field(default_factory=lambda: ["huggingface"])
    """The formats: ``huggingface`` (a folder), ``torchaudio`` (``.pth``), ``fairseq`` (``.pt``), ``onnx``."""

    layer: int | None = None
    """For ``onnx``: the 1-based layer whose output the graph returns; ``null``: the model's output, or its logits."""

    heads: bool | None = None
    """Whether target heads are exported; ``null``: where the format has a place for them."""

    audio: Path | None = None
    """An audio file on which the exports are measured; ``null``: speech of the demo corpus, where it is installed."""

    gang: GangSection = field(default_factory=GangSection)
    """The processes; rank 0 does the work."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """fairseq2's common settings."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not self.formats:
            result.add_error(f"`formats` must name at least one of {', '.join(EXPORT_FORMATS)}.")

        if self.layer is not None and self.layer < 0:
            result.add_error(f"`layer` must be 0 or greater, but is {self.layer} instead.")

        return result
