"""A run of ``transcribe``: its decoder and weights, its blocks, which the ranks share, and its results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from fairseq2.gang import Gang
from fairseq2.logging import log
from fairseq2.utils.progress import ProgressReporter
from torch import Tensor

from hubert_plugin.data.transcripts import TranscriptConfig, read_transcripts
from hubert_plugin.decoding.beam import BeamDecoder
from hubert_plugin.decoding.decoder import Decoder
from hubert_plugin.decoding.distance import EditCounts, edit_counts
from hubert_plugin.decoding.fit import DecoderConfig, make_decoder
from hubert_plugin.decoding.inputs import AudioInput
from hubert_plugin.decoding.outputs import JSONL_FILE, read_records, record_of, remove_outputs, write_outputs
from hubert_plugin.decoding.parts import Parts
from hubert_plugin.decoding.transcriber import Times, Transcriber, blocks_of
from hubert_plugin.decoding.tuning import TuningConfig, tune_weights
from hubert_plugin.errors import DecodingError, format_problems, printable
from hubert_plugin.files import write_text_atomic
from hubert_plugin.text.normalization import TextConfig, normalize_text
from hubert_plugin.text.vocabulary import CtcVocabulary

SUMMARY_FILE: Final = "transcribe.json"
"""What a run did; ``evaluate`` finds references and real-time factor by it."""

TUNING_FILE: Final = "tuning.json"

_MAX_BLOCK_SECONDS: Final = 600.0
_MIN_BLOCK_SECONDS: Final = 30.0

_NUM_NAMED: Final = 5


@dataclass(frozen=True)
class Job:
    """A run of ``transcribe``."""

    output_dir: Path

    source: AudioInput

    transcriber: Transcriber

    identity: dict[str, Any]
    """All that transcripts depend on, as plain data that JSON gives back as it is; becomes part of the summary."""

    formats: Sequence[str]

    gang: Gang

    def run(self, progress: ProgressReporter, should_stop: Callable[[], bool]) -> None:
        """Transcribe this rank's blocks, unless all is done."""
        if self._find_summary() is not None:
            return

        blocks, parts = self._blocks(), self._parts()

        mine = [b for b in range(self.gang.rank, len(blocks), self.gang.size) if not parts.has(b)]

        task = progress.create_task("transcribe", total=sum(len(blocks[b]) for b in mine))

        with task:
            for block in mine:
                if should_stop():
                    return

                times = Times()

                transcripts = self.transcriber.transcribe(self.source, blocks[block], times)

                parts.save(block, [record_of(t) for t in transcripts], times)

                task.step(len(transcripts))

    def finish(self) -> None:
        """Put the blocks of all ranks together and write the results."""
        blocks, parts = self._blocks(), self._parts()

        summary = self._find_summary()

        if summary is not None:
            log.info("All was transcribed before: only files that are missing are written. For another try, choose "
                     "another folder.")  # fmt: skip

            records = read_records(self.output_dir)
        elif not all(parts.has(b) for b in range(len(blocks))):
            return  # a rank was asked to stop
        else:
            records, times = parts.collect(len(blocks))

            summary = self._summarize(records, times)

            # Of another command, with other formats perhaps.
            remove_outputs(self.output_dir)

            (self.output_dir / SUMMARY_FILE).unlink(missing_ok=True)

        write_outputs(self.output_dir, records, self.formats)

        write_text_atomic(self.output_dir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")

        parts.remove()

        _report(summary, records, self.output_dir)

    def _find_summary(self) -> dict[str, Any] | None:
        """Return the summary of this very job, if it was finished before."""
        try:
            summary: dict[str, Any] = json.loads((self.output_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

        is_same = all(summary.get(key) == value for key, value in self.identity.items())

        return summary if is_same and (self.output_dir / JSONL_FILE).is_file() else None

    def _summarize(self, records: Sequence[Mapping[str, Any]], times: Times) -> dict[str, Any]:
        empty = [r["id"] for r in records if not r["text"] and "error" not in r]
        skipped = [r["id"] for r in records if "error" in r]

        duration = sum(r["seconds"] for r in records)

        return {
            **self.identity,
            "num_recordings": len(records),
            "seconds": round(duration, 3),
            "num_words": sum(len(r["words"]) for r in records),
            "num_empty": len(empty),
            "empty": empty[:100],
            "num_skipped": len(skipped),
            "skipped": skipped[:100],
            "processing_seconds": {name: round(value, 3) for name, value in vars(times).items()},
            "real_time_factor": times.total / duration if duration > 0 else None,
        }

    def _blocks(self) -> list[range]:
        share = self.source.seconds / (4 * self.gang.size)

        return blocks_of(self.source.sizes, min(max(share, _MIN_BLOCK_SECONDS), _MAX_BLOCK_SECONDS))

    def _parts(self) -> Parts:
        # Blocks are cut for a number of processes.
        return Parts(self.output_dir, {**self.identity, "num_processes": self.gang.size})


def _report(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]], output_dir: Path) -> None:
    if summary["num_skipped"]:
        errors = [r["error"] for r in records if "error" in r]

        log.warning(
            "{}",
            format_problems(
                f"{len(errors):,} of {len(records):,} recordings could not be read and have an empty line:", errors
            ),
        )

    if summary["num_empty"]:
        named = ", ".join(summary["empty"][:_NUM_NAMED]) + (", …" if summary["num_empty"] > _NUM_NAMED else "")

        log.warning(
            "Nothing was recognised in {:,} of {:,} recordings, whose lines are empty: {}.",
            summary["num_empty"],
            summary["num_recordings"],
            printable(named),
        )

    if len(records) <= _NUM_NAMED:
        for record in records:
            log.info(
                "{}: {}", printable(record["id"]), record["text"] or ("(skipped)" if "error" in record else "(nothing)")
            )

    log.info(
        "Transcribed {:,} recordings ({:,.1f} s) with a real-time factor of {:.4f}. Written to {}.",
        summary["num_recordings"],
        summary["seconds"],
        summary["real_time_factor"] or 0.0,
        printable(str(output_dir)),
    )


def tune(
    output_dir: Path,
    transcriber: Transcriber,
    vocabulary: CtcVocabulary,
    config: DecoderConfig,
    source: AudioInput,
    tuning: TuningConfig,
    fingerprint: str,
    progress: ProgressReporter,
) -> None:
    """Search for w1 and w2 on ``source`` and write them to the output folder, unless they are there.

    Words are compared in the case of the recogniser's symbols, as ``finetune`` takes transcripts.

    :param vocabulary: The recogniser's symbols.
    :param fingerprint: Which recogniser it is.
    :raises DecodingError: The decoder has no weights, there are no transcripts to measure with, or no word of them can
        be written.
    """
    references = _references(source, tuning)

    identity = {
        "model_fingerprint": fingerprint,
        "decoder": describe_decoder(config),
        "tune": {k: v if isinstance(v, (int, str)) else str(v) for k, v in asdict(tuning).items()},
        "input": source.source,
        "references_fingerprint": sha256("\n".join(references).encode("utf-8", "surrogateescape")).hexdigest()[:16],
    }

    path = output_dir / TUNING_FILE

    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("identity") == identity:
        return

    decoder = transcriber.decoder

    if not isinstance(decoder, BeamDecoder) or not config.lm:
        raise DecodingError("Weights are searched for beam search with a language model: set `decoder.lm`.")

    def plain(words: str) -> list[str]:
        return normalize_text(vocabulary.fold(words), TextConfig(case="none")).split()

    spoken = [plain(text) for text in references]

    _check_writable(sorted({w for words in spoken for w in words}), decoder.words, plain, vocabulary)

    # The recogniser runs once, the decoder in each trial.
    scored: list[tuple[Tensor, list[str]]] = [
        (logits, spoken[idx])
        for idx, logits in transcriber.emit(source, range(len(source.ids)), Times())
        if isinstance(logits, Tensor)
    ]

    def measure(w1: float, w2: float) -> EditCounts:
        decoder.config = replace(decoder.config, lm_weight=w1, word_score=w2, nbest=1)

        counts = EditCounts()

        for logits, words in scored:
            counts += edit_counts(words, plain(decoder.decode(logits)[0].text))

        return counts

    task = progress.create_task("tune", total=tuning.trials)

    with task:
        result = tune_weights(
            measure, tuning, start=(config.lm_weight, config.word_score), on_trial=lambda: task.step(1)
        )

    log.info(
        "The best of {} pairs of weights are {:.3f} (language model) and {:.3f} (word), with a WER of {:.2%} on the "
        "validation set.",
        tuning.trials,
        result.lm_weight,
        result.word_score,
        result.counts.rate,
    )

    content = {
        "lm_weight": result.lm_weight,
        "word_score": result.word_score,
        "wer": result.counts.rate,
        "history": [{"lm_weight": a, "word_score": b, "wer": c} for a, b, c in result.history],
        "identity": identity,
    }

    write_text_atomic(path, json.dumps(content, indent=2) + "\n")


def tuned(config: DecoderConfig, output_dir: Path) -> DecoderConfig:
    """Return the options with the weights that were found."""
    found = json.loads((output_dir / TUNING_FILE).read_text(encoding="utf-8"))

    return replace(config, lm_weight=found["lm_weight"], word_score=found["word_score"])


def _references(source: AudioInput, tuning: TuningConfig) -> list[str]:
    if source.manifest is None:
        raise DecodingError(
            "Weights are searched on a split of a manifest, whose transcripts are known: set "
            "`tune.input=FOLDER/SPLIT.tsv`."
        )

    references = read_transcripts(source.manifest, TranscriptConfig(file=tuning.references)).texts

    if not any(text.strip() for text in references):
        raise DecodingError(f"All transcripts of '{source.manifest.path}' are empty: there is nothing to measure with.")

    return references


def _check_writable(
    words: Sequence[str], known: Sequence[str] | None, plain: Callable[[str], list[str]], vocabulary: CtcVocabulary
) -> None:
    """Warn of words of the transcripts that cannot be recognised, whatever the weights.

    :param known: The words that the decoder may write; ``None``: all that the symbols can write.
    :param plain: How words are compared.
    :raises DecodingError: All are such words: any weights would be as good.
    """
    if known is None:
        outside = [w for w in words if vocabulary.find_outside(w)]
    else:
        written = {w for word in known for w in plain(word)}

        outside = [w for w in words if w not in written]

    named = ", ".join(f"'{w}'" for w in outside[:_NUM_NAMED]) + (", …" if len(outside) > _NUM_NAMED else "")

    if len(outside) == len(words):
        raise DecodingError(
            f"None of the {len(words):,} words of the transcripts can be written by this decoder, so that all weights "
            f"would be as good: {named}. They have another alphabet, or are not in the lexicon. Choose other "
            "transcripts with `tune.references`, or another language model or lexicon."
        )

    if outside:
        log.warning(
            "{:,} of the {:,} words of the transcripts cannot be written by this decoder and count as errors with any "
            "weights: {}.",
            len(outside),
            len(words),
            printable(named),
        )


def describe_decoder(config: DecoderConfig) -> dict[str, Any]:
    """Return the options of a decoder as plain data, with sizes and times of its files: another file under the same
    name is another decoder."""
    stamps = {}

    for name in ("lm", "lexicon"):
        if path := getattr(config, name):
            with suppress(OSError):
                stat = Path(path).expanduser().stat()

                stamps[f"{name}_file"] = [stat.st_size, stat.st_mtime_ns]

    return {**asdict(config), **stamps}


def create_decoder(vocabulary: CtcVocabulary, config: DecoderConfig) -> Decoder:
    """Build the decoder and log what was left out.

    :raises DecodingError: Language model, lexicon and recogniser do not belong together.
    """
    decoder, notes = make_decoder(vocabulary, config)

    for note in notes:
        log.warning("{}", note)

    return decoder
