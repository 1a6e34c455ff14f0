"""The configuration of ``transcribe``."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.audio import AudioPolicy
from hubert_plugin.decoding.fit import DecoderConfig
from hubert_plugin.decoding.inputs import STDIN
from hubert_plugin.decoding.outputs import FORMATS
from hubert_plugin.decoding.rescoring import RescoringConfig
from hubert_plugin.decoding.transcriber import ComputeConfig
from hubert_plugin.decoding.tuning import TuningConfig
from hubert_plugin.demo import DemoCorpusConfig


@dataclass(kw_only=True)
class HubertTranscribeConfig(Validatable):
    """Configures ``fairseq2 recipe hubert transcribe``."""

    # Not `str | None`: fairseq2 asks whether the type of a key `model` is a class of its own.
    model: str = ""
    """A HuBERT that was fine-tuned for recognition: a model card, a checkpoint file or the folder of a run, whatever
    ``load_hubert_ctc`` takes."""

    step: int | str = "best"
    """Which checkpoint of a run: ``best``, ``last`` or the number of a step."""

    symbols: str = ""
    """What the outputs mean, for checkpoints that do not say: ``fairseq_letters``, ``letters``, ``torchaudio_letters``,
    or a file with a symbol in each line (``dict.ltr.txt``), where the blank is named ``<pad>``, ``[PAD]``,
    ``<blank>`` or ``<s>`` if it is not the first."""

    # A string or a list of strings.
    input: object = ""
    """An audio file or a list of them, a folder or archive of audio, a manifest (``FOLDER/SPLIT.tsv``), or ``-`` for a
    wav on standard input. Empty: the validation part of the demo corpus."""

    demo: DemoCorpusConfig = field(default_factory=DemoCorpusConfig)
    """Size, level and seed of the demo corpus."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """How scores become text."""

    rescoring: RescoringConfig = field(default_factory=RescoringConfig)
    """A second language model that looks at n-best lists."""

    tune: TuningConfig = field(default_factory=TuningConfig)
    """The search for the weights of the language model."""

    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """How much is computed at once."""

    formats: list[str] = field(default_factory=lambda: ["text", "ctm"])
    """What is written beside ``transcripts.jsonl``: ``text``, ``ctm``, ``srt``."""

    audio: AudioPolicy = field(default_factory=AudioPolicy)
    """What to do with other sample rates. Waveforms are normalised as the model was trained, whatever this says."""

    on_bad_audio: str = "raise"
    """What to do with recordings that cannot be read: ``raise``, or ``skip``, which gives them an empty line."""

    # A process that is done waits for the others, possibly for hours.
    gang: GangSection = field(default_factory=lambda: GangSection(timeout=24 * 60))
    """The processes; they share the recordings."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """fairseq2's common settings."""

    @property
    def inputs(self) -> list[str]:
        """The names of ``input``."""
        # To YAML a lone dash is a list of one item that is not there.
        if self.input == [None]:
            return [STDIN]

        if isinstance(self.input, str):
            return [self.input] if self.input else []

        return list(self.input) if isinstance(self.input, (list, tuple)) else []

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        is_list = isinstance(self.input, (list, tuple)) and bool(self.input)

        if not isinstance(self.input, str) and not (is_list and all(isinstance(i, str) for i in self.inputs)):
            result.add_error(f"`input` must be a path, a list of paths or '-', but is {self.input!r} instead.")

        if self.step not in ("best", "last") and not str(self.step).isdigit():
            result.add_error(f"`step` must be 'best', 'last' or the number of a step, but is '{self.step}' instead.")

        if unknown := [f for f in self.formats if f not in FORMATS]:
            result.add_error(f"`formats` must be some of {', '.join(FORMATS)}, but names {', '.join(unknown)}.")

        if self.on_bad_audio not in ("raise", "skip"):
            result.add_error(f"`on_bad_audio` must be 'raise' or 'skip', but is '{self.on_bad_audio}' instead.")

        if self.tune.trials > 0 and not self.decoder.lm:
            result.add_error("`tune` searches for the weights of a language model, so `decoder.lm` must be given.")

        if self.rescoring.lm and self.decoder.name == "greedy":
            result.add_error(
                "`rescoring` chooses among several hypotheses, of which `decoder.name=greedy` gives one: set "
                "`decoder.name=beam` and `decoder.nbest`."
            )
        elif self.rescoring.lm and self.decoder.nbest < 2:
            result.add_error(
                "`rescoring` chooses among the `decoder.nbest` best hypotheses, which must be 2 or more, but is "
                f"{self.decoder.nbest}."
            )

        return result
