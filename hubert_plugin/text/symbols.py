"""Well-known sets of symbols, for checkpoints that do not say their own and for training without a tokenizer card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SEPARATOR: Final = "|"
"""What stands between words in sets of letters (fairseq ``dict.ltr.txt``, torchaudio, Hugging Face)."""

WORD_START: Final = "\u2581"
"""What SentencePiece puts before the first piece of a word."""

FAIRSEQ_SPECIALS: Final = ("<s>", "<pad>", "</s>", "<unk>")
"""What every dictionary of fairseq begins with (``fairseq/data/dictionary.py``). ``<s>`` is the blank."""

BLANKS: Final = ("<pad>", "[PAD]", "<blank>", "<s>")
"""What the blank is called in files of symbols. Of several, the first here: where Hugging Face has ``<pad>`` and
``<s>``, the former is it. (fairseq, whose blank is ``<s>``, has it as output 0.)"""

# By frequency, as in the dict.ltr.txt that fairseq gives with its fine-tuned models; torchaudio has the same order.
_LETTERS: Final = tuple("|ETAONIHSRDLUMWCFGYPBVK'XJQZ")

NAMED_SYMBOLS: Final[Mapping[str, tuple[str, ...]]] = {
    "fairseq_letters": (*FAIRSEQ_SPECIALS, *_LETTERS),
    "letters": ("<blank>", *_LETTERS),
    "torchaudio_letters": ("-", *_LETTERS),
    "huggingface_letters": ("<pad>", "<s>", "</s>", "<unk>", *_LETTERS),
}
"""``fairseq_letters``: 32 outputs, as of fairseq's models fine-tuned on LibriSpeech. ``letters``: the 29 of the paper
(section IV-D: 26 letters, space, apostrophe and blank). ``torchaudio_letters``: the 29 that torchaudio's bundles list.
``huggingface_letters``: the 32 of ``facebook/hubert-large-ls960-ft``. The blank is the first symbol of each."""
