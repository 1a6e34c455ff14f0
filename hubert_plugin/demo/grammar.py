"""The text of the embedded corpus: random English sentences from a small grammar of our own.

About 430 words, chosen so that every phone of :mod:`hubert_plugin.demo.phones` occurs, also the rare ones (``ZH`` in
*measure*, ``OY`` in *boy*, ``UHR`` in *sure*).
"""

from __future__ import annotations

from random import Random
from typing import Final


def _words(text: str) -> list[str]:
    return text.split()


_SINGULAR_DETERMINERS: Final = _words("the the the a this that every another our their my his her your")
_PLURAL_DETERMINERS: Final = _words("the the some these those many few our their my his her your")
_NUMBERS: Final = _words(
    """
    two three four five six seven eight nine ten eleven twelve thirteen fifteen twenty thirty forty fifty hundred
    """
)
_ADJECTIVES: Final = _words(
    """
    young big small tall short long thick thin rough smooth bright dark quiet loud cheap strange usual royal foreign
    yellow orange purple green blue brown grey white black wooden golden frozen broken empty heavy gentle clever
    hungry thirsty joyful careful honest northern southern fresh huge foolish good poor warm cold sharp
    """
)
_PERSONS: Final = _words(
    """
    captain teacher doctor farmer neighbor brother mother father uncle cousin judge soldier painter singer sailor
    boy girl king queen stranger author lawyer visitor nurse pilot
    """
)
_ANIMALS: Final = _words("dog cat horse fox bird bear tiger zebra monkey goat lion frog eagle chicken pigeon")
_THINGS: Final = _words(
    """
    book ship bridge chair table window garden river mountain valley forest village city house kitchen church school
    engine wheel machine letter picture treasure measure coin basket bottle apple orange cherry sandwich onion fire
    shoe jacket glove watch clock radio hammer rope wagon boat train plane road path beach island cloud shadow
    television voice song story page language garage thing tooth cage vision
    """
)
_IRREGULAR_PLURALS: Final = {
    "beach": "beaches",
    "church": "churches",
    "cherry": "cherries",
    "city": "cities",
    "fox": "foxes",
    "sandwich": "sandwiches",
    "story": "stories",
    "tooth": "teeth",
    "watch": "watches",
}
_TRANSITIVE_VERBS: Final = _words(
    """
    found lost bought sold carried painted pushed pulled watched followed measured remembered forgot changed chose
    broke fixed washed touched heard saw drew threw caught brought built burned shook loved hated joined enjoyed
    avoided buried visited closed opened wanted needed liked kept took gave
    """
)
_INTRANSITIVE_VERBS: Final = _words(
    """
    slept laughed shouted waited vanished arrived fell ran walked jumped sang danced whispered coughed sneezed
    returned cried smiled
    """
)
_ADVERBS: Final = _words(
    """
    slowly quickly quietly again today yesterday together often never usually always twice badly
    """
)
_PREPOSITIONS: Final = _words(
    """
    in on under near behind beside through across without with from toward above below around before after by
    """
)
_TIMES: Final = _words(
    """
    monday tuesday wednesday thursday friday saturday sunday january april june july august october december
    """
)
_CONJUNCTIONS: Final = _words("and but because while though when before until")
_OPENINGS: Final = (
    "we don't think",
    "they can't believe",
    "i'm sure",
    "it's clear that",
    "she said that",
    "you know that",
    "i'd say",
    "he'll hope",
    "nobody knows why",
    "we heard that",
    "perhaps",
    "one day",
    "at seven o'clock",
    "this year",
    "with pleasure",
)


def make_text(key: str) -> list[str]:
    """Return the lower-case words of the utterance ``key``: one sentence, or two in three cases of ten."""
    rng = Random(f"text/{key}")

    words = _sentence(rng)

    if rng.random() < 0.3:
        words += _sentence(rng)

    return words


def vocabulary() -> list[str]:
    """Return every word that :func:`make_text` can produce, sorted."""
    words = {"an", "on"}

    for group in (
        _SINGULAR_DETERMINERS,
        _PLURAL_DETERMINERS,
        _NUMBERS,
        _ADJECTIVES,
        _TRANSITIVE_VERBS,
        _INTRANSITIVE_VERBS,
        _ADVERBS,
        _PREPOSITIONS,
        _TIMES,
        _CONJUNCTIONS,
    ):
        words.update(group)

    for noun in (*_PERSONS, *_ANIMALS, *_THINGS):
        words |= {noun, _plural(noun)}

    for opening in _OPENINGS:
        words.update(opening.split())

    return sorted(words)


def _sentence(rng: Random) -> list[str]:
    words = rng.choice(_OPENINGS).split() if rng.random() < 0.25 else []

    words += _noun_phrase(rng) + _verb_phrase(rng)

    if rng.random() < 0.25:
        words += [rng.choice(_CONJUNCTIONS), *_noun_phrase(rng), *_verb_phrase(rng)]

    return words


def _noun_phrase(rng: Random) -> list[str]:
    # Things are the largest group and are drawn twice as often as persons or animals.
    noun = rng.choice(rng.choice((_PERSONS, _ANIMALS, _THINGS, _THINGS)))

    adjectives = [rng.choice(_ADJECTIVES)] if rng.random() < 0.5 else []

    if rng.random() < 0.35:
        determiner = rng.choice(_PLURAL_DETERMINERS if rng.random() < 0.6 else _NUMBERS)

        return [determiner, *adjectives, _plural(noun)]

    determiner = rng.choice(_SINGULAR_DETERMINERS)

    words = [*adjectives, noun]

    if determiner == "a" and (words[0] == "honest" or (words[0][0] in "aeiou" and words[0] != "usual")):
        determiner = "an"

    return [determiner, *words]


def _verb_phrase(rng: Random) -> list[str]:
    words = [rng.choice(_ADVERBS)] if rng.random() < 0.15 else []

    if rng.random() < 0.7:
        words += [rng.choice(_TRANSITIVE_VERBS), *_noun_phrase(rng)]
    else:
        words.append(rng.choice(_INTRANSITIVE_VERBS))

    ending = rng.random()

    if ending < 0.35:
        words += [rng.choice(_PREPOSITIONS), *_noun_phrase(rng)]
    elif ending < 0.5:
        words += ["on", rng.choice(_TIMES)]
    elif ending < 0.6:
        words.append(rng.choice(_ADVERBS))

    return words


def _plural(noun: str) -> str:
    return _IRREGULAR_PLURALS.get(noun, noun + "s")
