"""References and hypotheses from the files that people have, paired by ids or by lines.

- ``.jsonl``: a record with ``id`` and ``text`` in each line (what ``transcribe`` writes),
- ``.tsv`` with a head line: a column of ids and one of words,
- ``text``, ``*.text``: utterance id and words (kaldi),
- ``.ltr``: a line of letters, words ended by ``|`` (fairseq),
- anything else: a line of words (fairseq's ``.wrd``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hubert_plugin.errors import TextError, format_problems, printable


@dataclass(frozen=True)
class Texts:
    """The words of some utterances."""

    path: Path

    texts: list[str]

    ids: list[str] | None = None
    """What the utterances are called; ``None``: the file only has lines."""


@dataclass(frozen=True)
class Pair:
    """An utterance's reference and hypothesis."""

    id: str
    reference: str
    hypothesis: str


def read_texts(path: Path, *, column: str = "text", id_column: str = "path") -> Texts:
    """Read the words of utterances.

    :param column: In a ``.tsv``: the column of the words.
    :param id_column: In a ``.tsv``: the column that names the utterance.
    :raises TextError: The file is missing, empty or malformed; names all lines.
    """
    texts = _read_texts(Path(path).expanduser(), column, id_column)

    names = [f"'{i}'" for i in texts.ids] if texts.ids is not None else None

    problems = [
        f"{names[number - 1] if names else f'{texts.path}:{number}'}: expected UTF-8, found {text[:60]!r}."
        for number, text in enumerate(texts.texts, start=1)
        if printable(text) != text
    ]

    if problems:
        raise TextError(format_problems(f"The words in '{texts.path}' cannot be read:", problems))

    return texts


def _read_texts(path: Path, column: str, id_column: str) -> Texts:
    try:
        # Ids are names of files, which may be no UTF-8 and are kept as they are (`outputs.json_lines` writes them so).
        content = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        raise TextError(f"There is no file '{path}'.") from None
    except IsADirectoryError:
        raise TextError(
            f"'{path}' is a folder, but must be a file with the words of an utterance in each line."
        ) from None
    except OSError as ex:
        raise TextError(f"'{path}' cannot be read: {ex}.") from ex

    lines = content.removesuffix("\n").split("\n")

    if not content:
        raise TextError(f"'{path}' is empty: expected the words of an utterance in each line.")

    if path.suffix == ".ltr":
        return Texts(path, ["".join(line.split()).replace("|", " ").strip() for line in lines])

    if path.suffix not in (".jsonl", ".tsv", ".text") and path.name != "text":
        return Texts(path, [" ".join(line.split()) for line in lines])

    if path.suffix == ".jsonl":
        return _parse(path, lines, 1, _parse_record)

    if path.suffix == ".tsv":
        head = lines[0].rstrip("\r").split("\t")

        if missing := [c for c in (id_column, column) if c not in head]:
            raise TextError(
                f"'{path}' must have a head line with the columns '{id_column}' and '{column}', but lacks "
                f"{', '.join(map(repr, missing))}; found {', '.join(map(repr, head))}. Set `column` and `id_column`."
            )

        return _parse(
            path, lines[1:], 2, lambda line: _parse_row(line, head, head.index(id_column), head.index(column))
        )

    return _parse(path, lines, 1, _parse_kaldi)


def pair_texts(references: Texts, hypotheses: Texts, *, allow_missing: bool = False) -> list[Pair]:
    """Pair the utterances of two files: by their ids if both have them, by their lines otherwise.

    Ids also match without folders and endings, if they stay different.

    :param allow_missing: If ``True``, a reference without a hypothesis is paired with an empty one.
    :raises TextError: References have no hypotheses or the reverse; names all of them.
    """
    if references.ids is None or hypotheses.ids is None:
        if len(references.texts) != len(hypotheses.texts):
            raise TextError(
                f"'{references.path}' and '{hypotheses.path}' are paired by their lines, for one of them has no ids, "
                f"but have {len(references.texts):,} and {len(hypotheses.texts):,} utterances."
            )

        ids = hypotheses.ids or references.ids or [str(n) for n in range(1, len(references.texts) + 1)]

        return [Pair(*row) for row in zip(ids, references.texts, hypotheses.texts, strict=True)]

    ref_keys, hyp_keys = _common_keys(references.ids, hypotheses.ids)

    found = dict(zip(hyp_keys, hypotheses.texts, strict=True))

    known = set(ref_keys)

    problems = [
        f"'{id_}' has no hypothesis."
        for id_, key in zip(references.ids, ref_keys, strict=True)
        if key not in found and not allow_missing
    ]

    problems += [
        f"'{id_}' has no reference." for id_, key in zip(hypotheses.ids, hyp_keys, strict=True) if key not in known
    ]

    if problems:
        raise TextError(
            format_problems(
                f"The references '{references.path}' and the hypotheses '{hypotheses.path}' do not match "
                f"({len(problems):,} utterances):",
                problems,
            )
        )

    return [
        Pair(id_, text, found.get(key, ""))
        for id_, key, text in zip(references.ids, ref_keys, references.texts, strict=True)
    ]


def _common_keys(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return the ids of both in the way of writing in which most of them match."""

    def without_ending(id_: str) -> str:
        return str(PurePosixPath(id_).with_suffix("")) if PurePosixPath(id_).name else id_

    def base_name(id_: str) -> str:
        return PurePosixPath(id_).stem

    ways: list[Callable[[str], str]] = [str, without_ending, base_name]

    candidates = [([way(i) for i in references], [way(i) for i in hypotheses]) for way in ways]

    # Base names may repeat (trap T37).
    unique = [c for c in candidates if all(len(set(keys)) == len(keys) for keys in c)]

    return max(unique or candidates[:1], key=lambda c: len(set(c[0]) & set(c[1])))


def _parse(path: Path, lines: Sequence[str], first: int, parse: Callable[[str], tuple[str, str] | str]) -> Texts:
    ids: dict[str, int] = {}

    texts, problems = [], []

    for number, line in enumerate(lines, start=first):
        result = parse(line.rstrip("\r"))

        if isinstance(result, str):
            problems.append(f"{path}:{number}: {result}")
        elif result[0] in ids:
            problems.append(f"{path}:{number}: '{result[0]}' is named again (line {ids[result[0]]}).")
        else:
            ids[result[0]] = number

            texts.append(" ".join(result[1].split()))

    if problems:
        raise TextError(format_problems(f"'{path}' cannot be used:", problems))

    return Texts(path, texts, list(ids))


def _parse_record(line: str) -> tuple[str, str] | str:
    try:
        record = json.loads(line)

        if isinstance(record["id"], str) and isinstance(record["text"], str):
            return record["id"], record["text"]
    except (ValueError, KeyError, TypeError):
        pass

    return f"expected a JSON record with `id` and `text`, found {line[:60]!r}."


def _parse_row(line: str, head: Sequence[str], id_idx: int, text_idx: int) -> tuple[str, str] | str:
    fields = line.split("\t")

    if len(fields) != len(head):
        return f"expected {len(head)} fields, as in the head, found {len(fields)}."

    return fields[id_idx], fields[text_idx]


def _parse_kaldi(line: str) -> tuple[str, str] | str:
    fields = line.split(maxsplit=1)

    if not fields:
        return "expected an utterance id and its words, found an empty line."

    return fields[0], fields[1] if len(fields) > 1 else ""
