"""Transcripts that cannot be used: of all splits in one message, refused or left out as the policies say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fairseq2.logging import log

from hubert_plugin.errors import TextError, format_problems
from hubert_plugin.text.counts import count
from hubert_plugin.text.vocabulary import CtcVocabulary

Policy = Literal["raise", "skip"]

Kind = Literal["empty", "unspellable", "too_long"]

_MAX_SHOWN_CHARACTERS: Final = 40

_POLICY_KEYS: Final[Mapping[Kind, str]] = {
    "unspellable": "on_bad_text",
    "empty": "on_bad_text",
    "too_long": "on_long_text",
}

REMEDIES: Final[Mapping[Kind, str]] = {
    "unspellable": "normalise the text (`task.config.text`) or take another tokenizer",
    "empty": "complete empty transcripts",
    "too_long": "correct the audio or the transcripts that are too long for it",
}
"""What makes such a transcript usable."""


@dataclass(frozen=True)
class TextProblem:
    """A transcript that cannot be used."""

    split: str

    kind: Kind

    sentence: str
    """Names file, line and utterance, and says what was found."""

    outside: Sequence[str] = ()
    """The characters that the vocabulary lacks."""


def judge_texts(
    problems: Sequence[TextProblem], vocabulary: CtcVocabulary, *, on_bad_text: Policy, on_long_text: Policy
) -> None:
    """Warn of the transcripts that the policies leave out, and refuse the others, all at once.

    :param problems: Those of all splits, in the order in which they are named.
    :param on_bad_text: What to do with transcripts that are empty or have characters outside of the vocabulary.
    :param on_long_text: What to do with transcripts of more symbols than their audio has frames.
    :raises TextError: There are such transcripts, and the policy is ``raise``; names all of them, or the first and how
        many more.
    """
    policies = {"on_bad_text": on_bad_text, "on_long_text": on_long_text}

    skipped = [p for p in problems if policies[_POLICY_KEYS[p.kind]] == "skip"]
    refused = [p for p in problems if policies[_POLICY_KEYS[p.kind]] == "raise"]

    if skipped:
        # Whoever leaves them out already needs no advice to do so.
        remedies = _join_or([REMEDIES[kind] for kind in _kinds(skipped)])

        head = f"{_summarize(skipped, vocabulary)} To use them, {remedies}:"

        log.warning("Left out: {}", format_problems(head, [p.sentence for p in skipped]))

    if refused:
        head = f"{_summarize(refused, vocabulary)} {_advise(_kinds(refused))}:"

        raise TextError(format_problems(head, [p.sentence for p in refused]))


def _kinds(problems: Sequence[TextProblem]) -> list[Kind]:
    return [kind for kind in _POLICY_KEYS if any(p.kind == kind for p in problems)]


def _summarize(problems: Sequence[TextProblem], vocabulary: CtcVocabulary) -> str:
    """Say how many of each split have which problem, a sentence each."""
    sentences = []

    for split in dict.fromkeys(p.split for p in problems):
        for kind in _kinds(problems):
            if found := [p for p in problems if (p.split, p.kind) == (split, kind)]:
                what = _describe(found, vocabulary)

                sentences.append(f"{count(len(found), 'transcript')} of the split '{split}' {what}.")

    return " ".join(sentences)


def _describe(problems: Sequence[TextProblem], vocabulary: CtcVocabulary) -> str:
    is_one = len(problems) == 1

    match problems[0].kind:
        case "empty":
            return "is empty" if is_one else "are empty"
        case "too_long":
            subject = "has more symbols than its" if is_one else "have more symbols than their"

            return f"{subject} audio has frames, which CTC cannot emit"
        case "unspellable":
            outside = {c for p in problems for c in p.outside}

            shown = " ".join(sorted(outside)[:_MAX_SHOWN_CHARACTERS])

            return (
                f"{'has' if is_one else 'have'} characters that the vocabulary lacks ({shown})"
                f"{_case_hint(vocabulary, outside)}"
            )


def _advise(kinds: Sequence[Kind]) -> str:
    """Say what helps: a sentence for each of the policies, which also may leave utterances out."""
    sentences = []

    for key in dict.fromkeys(_POLICY_KEYS[kind] for kind in kinds):
        remedies = [REMEDIES[kind] for kind in kinds if _POLICY_KEYS[kind] == key]

        sentence = _join_or([*remedies, f"leave such utterances out with `dataset.{key}=skip`"])

        sentences.append(sentence[0].upper() + sentence[1:])

    return ". ".join(sentences)


def _join_or(parts: Sequence[str]) -> str:
    return ", or ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _case_hint(vocabulary: CtcVocabulary, outside: set[str]) -> str:
    """Say it where only the case is wrong."""
    folded: dict[str, Callable[[str], str]] = {"upper": str.upper, "lower": str.lower}

    fold = folded.get(vocabulary.case)

    if fold is None or any(vocabulary.find_outside(fold(c)) for c in outside):
        return ""

    return f"; its letters are all {vocabulary.case} case: set `task.config.text.case={vocabulary.case}`"
