"""Transcripts: what is said in each utterance of a manifest, from the files that people have.

- ``SPLIT.wrd``, and any ending but those below: a line of words for each line of the manifest (fairseq; the demo corpus
  and manifests made from kaldi folders have it),
- ``SPLIT.ltr``: likewise, letters separated by spaces, words by ``|`` (fairseq),
- ``SPLIT.text``, ``SPLIT/text`` or any file named ``text``: utterance id and words (kaldi),
- a ``.tsv`` file with a head line: a column of ids and one of words.

Where utterances are named, an id may be kaldi's (``SPLIT.ids.txt`` beside the manifest), the manifest's path, that path
without its ending, or the bare file name without ending, if those are unique.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from fairseq2.logging import log
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.data.manifest import Manifest
from hubert_plugin.data.utterance_ids import read_utterance_ids
from hubert_plugin.errors import TextError, format_problems
from hubert_plugin.text.counts import count

KALDI_NAME: Final = "text"

_NUM_SHOWN_IDS: Final = 5

_AUTOMATIC: Final = ("{split}.wrd", "{split}.ltr", "{split}.text", "{split}/text", "text")


@dataclass(kw_only=True)
class TranscriptConfig(Validatable):
    """Where transcripts are."""

    name: str | None = None
    """The ending of the files ``SPLIT.NAME``, such as ``wrd`` or ``ltr``. ``None``: the first that is found of
    ``SPLIT.wrd``, ``SPLIT.ltr``, ``SPLIT.text``, ``SPLIT/text``, ``text``."""

    dir: Path | None = None
    """The folder of these files. ``None``: that of the manifest."""

    file: Path | None = None
    """One file for all splits, which names utterances: kaldi's ``text``, or a ``.tsv`` with a head line. Takes the
    place of ``name``."""

    column: str = "text"
    """In a ``.tsv``: the column of the words."""

    id_column: str = "path"
    """In a ``.tsv``: the column that names the utterance."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.file is not None and (self.name is not None or self.dir is not None):
            result.add_error("`file` takes the place of `name` and `dir`: only one of them can be specified.")

        return result


@dataclass(frozen=True)
class Transcripts:
    """The transcripts of a manifest, as they stand in the file."""

    path: Path
    """The file they were read from."""

    texts: list[str]
    """The words of each utterance, in the manifest's order; may be empty."""

    lines: list[int]
    """The line of each, for errors."""

    unlisted: Mapping[str, int] = field(default_factory=dict)
    """The lines of a file for all splits that are of no utterance of this manifest, by id."""


def read_transcripts(manifest: Manifest, config: TranscriptConfig) -> Transcripts:
    """Return the transcript of each utterance of ``manifest``.

    :raises TextError: There is no such file, utterances have no transcript or the reverse, or lines are malformed; all
        problems of the file at once.
    """
    path, is_shared = _find(manifest, config)

    if path.suffix == ".tsv":
        keyed, problems = _parse_table(path, config)
    elif path.name == KALDI_NAME or path.suffix == f".{KALDI_NAME}":
        keyed, problems = _parse_kaldi(path)
    else:
        return _read_lines(path, manifest)

    if problems:
        raise TextError(format_problems(f"The transcripts '{path}' cannot be used:", problems))

    return _match(path, keyed, manifest, is_shared=is_shared)


def _find(manifest: Manifest, config: TranscriptConfig) -> tuple[Path, bool]:
    """Return the file, and whether it may hold the utterances of other splits, too."""
    if config.file is not None:
        return config.file.expanduser(), True

    folder = manifest.path.parent if config.dir is None else config.dir.expanduser()

    split = manifest.split

    if config.name is not None:
        return folder / f"{split}.{config.name}", False

    for template in _AUTOMATIC:
        path = folder / template.format(split=split)

        if path.is_file():
            return path, "{split}" not in template

    names = ", ".join(t.format(split=split) for t in _AUTOMATIC)

    raise TextError(
        f"There are no transcripts of the split '{split}' in '{folder}': none of {names} is there. Put one of them "
        "there, or name a file: `dataset.transcripts.dir=FOLDER`, `dataset.transcripts.file=FILE` (kaldi's text, or a "
        ".tsv with `dataset.transcripts.column`)."
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TextError(f"There are no transcripts at '{path}': the file does not exist.") from None
    except OSError as ex:
        raise TextError(f"The transcripts '{path}' cannot be read: {ex.strerror or ex}.") from ex
    except UnicodeDecodeError as ex:
        line = ex.object[: ex.start].count(b"\n") + 1

        raise TextError(
            f"The transcripts '{path}' are not UTF-8: line {line} has the byte 0x{ex.object[ex.start]:02x}. Convert "
            "the file to UTF-8."
        ) from None


def _split_lines(text: str) -> list[str]:
    # Only "\n" ends a line; other separators that Python knows may be part of a text.
    lines = text.split("\n")

    while lines and not lines[-1].strip():
        lines.pop()

    return [line.rstrip("\r") for line in lines]


def _read_lines(path: Path, manifest: Manifest) -> Transcripts:
    text = _read_text(path)

    lines = text.removesuffix("\n").split("\n") if text else []

    # Empty lines at the end may be empty transcripts, or just be there.
    while len(lines) > len(manifest) and not lines[-1].strip():
        lines.pop()

    if len(lines) != len(manifest):
        raise TextError(
            f"The transcripts '{path}' must have a line for each of the {count(len(manifest), 'utterance')} of "
            f"'{manifest.path}', but have {len(lines):,}. They may belong to another manifest."
        )

    if path.suffix == ".ltr":
        lines = [_join_letters(line) for line in lines]

    return Transcripts(path, [line.strip() for line in lines], list(range(1, len(lines) + 1)))


def _join_letters(line: str) -> str:
    return "".join(line.split()).replace("|", " ")


def _parse_kaldi(path: Path) -> tuple[dict[str, tuple[int, str]], list[str]]:
    keyed: dict[str, tuple[int, str]] = {}

    problems = []

    for number, line in enumerate(_split_lines(_read_text(path)), start=1):
        fields = line.split(maxsplit=1)

        if not fields:
            problems.append(f"{path}:{number}: expected an utterance id and its words, found an empty line.")
        elif fields[0] in keyed:
            problems.append(f"{path}:{number}: '{fields[0]}' is named again (line {keyed[fields[0]][0]}).")
        else:
            keyed[fields[0]] = (number, fields[1].strip() if len(fields) > 1 else "")

    return keyed, problems


def _parse_table(path: Path, config: TranscriptConfig) -> tuple[dict[str, tuple[int, str]], list[str]]:
    lines = _split_lines(_read_text(path))

    head = lines[0].split("\t") if lines else []

    if missing := [c for c in (config.id_column, config.column) if c not in head]:
        return {}, [
            f"{path}:1: expected a head line with the column {c!r}, found: {', '.join(map(repr, head)) or 'nothing'}. "
            "Set `dataset.transcripts.column` and `id_column`."
            for c in missing
        ]

    id_idx, text_idx = head.index(config.id_column), head.index(config.column)

    keyed: dict[str, tuple[int, str]] = {}

    problems = []

    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")

        if len(fields) != len(head):
            problems.append(f"{path}:{number}: expected {len(head)} fields, as in the head, found {len(fields)}.")
        elif fields[id_idx] in keyed:
            problems.append(f"{path}:{number}: '{fields[id_idx]}' is named again (line {keyed[fields[id_idx]][0]}).")
        else:
            keyed[fields[id_idx]] = (number, fields[text_idx].strip())

    return keyed, problems


def _match(path: Path, keyed: Mapping[str, tuple[int, str]], manifest: Manifest, *, is_shared: bool) -> Transcripts:
    keys = _choose_keys(keyed, manifest)

    problems = [
        f"{manifest.path}:{number}: '{ref}' has no transcript."
        for number, (ref, key) in enumerate(zip(manifest.ids, keys, strict=True), start=2)
        if key not in keyed
    ]

    extra = keyed.keys() - set(keys)

    unlisted: dict[str, int] = {}

    if extra and is_shared:
        unlisted = {key: number for key, (number, _) in keyed.items() if key in extra}

        log.info("{}: {} not in '{}'.", path, count(len(extra), "utterance is", "utterances are"), manifest.path)
    elif extra:
        ordered = sorted((keyed[key][0], key) for key in extra)

        problems += [f"{path}:{number}: there is no utterance '{key}' in '{manifest.path}'." for number, key in ordered]

    if problems:
        raise TextError(
            format_problems(f"The transcripts '{path}' and the manifest '{manifest.path}' do not match:", problems)
        )

    found = [keyed[key] for key in keys]

    return Transcripts(path, [text for _, text in found], [number for number, _ in found], unlisted)


def warn_of_unlisted(transcripts: Mapping[str, Transcripts]) -> None:
    """Warn of what is in a file for all splits, but belongs to none of those that are used.

    :param transcripts: By split.
    """
    for path in dict.fromkeys(found.path for found in transcripts.values()):
        readers = {split: found for split, found in transcripts.items() if found.path == path}

        # What one split lacks is mostly the other's.
        first, *others = (found.unlisted for found in readers.values())

        ids = [key for key in first if all(key in other for other in others)]

        if not ids:
            continue

        shown = ", ".join(f"'{key}' (line {first[key]})" for key in ids[:_NUM_SHOWN_IDS])

        if (num_left := len(ids) - _NUM_SHOWN_IDS) > 0:
            shown += f" and {num_left:,} more"

        log.warning(
            "The transcripts '{}' have {} of no utterance of {}: {}. They are not used; if their audio was to take "
            "part, it is missing from the manifests.",
            path, count(len(ids), "transcript"), " or ".join(f"'{split}'" for split in readers), shown,
        )  # fmt: skip


def _choose_keys(keyed: Mapping[str, object], manifest: Manifest) -> Sequence[str]:
    """Return the id of each utterance in the way of naming that fits the transcripts best."""
    paths = [PurePosixPath(ref) for ref in manifest.ids]

    ways = [read_utterance_ids(manifest), manifest.ids, [str(p.with_suffix("")) for p in paths]]

    # Base names may repeat (trap T37).
    ways += [keys for keys in ([p.name for p in paths], [p.stem for p in paths]) if len(set(keys)) == len(keys)]

    return max(ways, key=lambda keys: sum(k in keyed for k in keys))
