"""A language model of the demo corpus, made on the way and kept in the cache folder.

It is estimated from text that the corpus's grammar writes from other seeds than those of the corpus; sentences that the
validation part happens to say as well are left out. Its words are those of the grammar.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from hubert_plugin.decoding.fit import DecoderConfig
from hubert_plugin.decoding.ngram import NgramEstimate
from hubert_plugin.demo import DemoCorpusConfig, ensure_demo_corpus
from hubert_plugin.demo.cache import default_cache_dir
from hubert_plugin.demo.grammar import make_text
from hubert_plugin.errors import StorageError

DEMO_LM: Final = "demo"
"""What ``decoder.lm`` calls it."""

MAKER_VERSION: Final = 1
"""To be raised with every change that makes another model."""

NUM_SENTENCES: Final = 20_000
"""About 250,000 words: the demo's grammar is small. They take three seconds."""

ORDER: Final = 3


def ensure_demo_lm(config: DemoCorpusConfig) -> Path:
    """Return the path of the ARPA file, making it first if it is not in the cache.

    :param config: The corpus whose validation part is left out.
    :raises StorageError: The cache folder cannot be written.
    """
    corpus = ensure_demo_corpus(config)

    held_out = {line for line in (corpus / "valid.wrd").read_text(encoding="utf-8").splitlines() if line.strip()}

    digest = sha256("\n".join([str(MAKER_VERSION), *sorted(held_out)]).encode()).hexdigest()[:10]

    try:
        folder = Path(config.cache_dir or default_cache_dir()).expanduser().absolute()
    except OSError as ex:
        raise StorageError(f"The language model of the demo corpus cannot be kept: {ex}. Set `demo.cache_dir`.") from ex

    path = folder / f"lm-{ORDER}gram-{digest}.arpa"

    # Written whole or not at all, and always the same: two makers at once do no harm.
    if not path.is_file():
        NgramEstimate(demo_sentences(held_out), ORDER).save(path)

    return path


def resolve_decoder(config: DecoderConfig, demo: DemoCorpusConfig) -> DecoderConfig:
    """Return the options of a decoder with the path of the demo's language model in place of its name."""
    return replace(config, lm=str(ensure_demo_lm(demo))) if config.lm == DEMO_LM else config


def demo_sentences(held_out: set[str]) -> Iterator[list[str]]:
    """Yield the sentences that the model is estimated from.

    :param held_out: Sentences in upper case that are passed over.
    """
    for number in range(NUM_SENTENCES):
        words = [w.upper() for w in make_text(f"lm/{number}")]

        if " ".join(words) not in held_out:
            yield words
