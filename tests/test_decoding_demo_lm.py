"""The demo corpus's language model."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubert_plugin.decoding import demo_lm
from hubert_plugin.decoding.demo_lm import demo_sentences, ensure_demo_lm, resolve_decoder
from hubert_plugin.decoding.fit import DecoderConfig
from hubert_plugin.decoding.language_model import open_ngram_file
from hubert_plugin.demo import DemoCorpusConfig
from hubert_plugin.demo.grammar import vocabulary


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus whose validation part says some of the sentences that the model would be made of."""
    monkeypatch.setattr(demo_lm, "NUM_SENTENCES", 200)

    folder = tmp_path / "corpus"

    folder.mkdir()

    said = [" ".join(words) for words in list(demo_sentences(set()))[5:15]]

    (folder / "valid.wrd").write_text("".join(f"{line}\n" for line in said))

    monkeypatch.setattr(demo_lm, "ensure_demo_corpus", lambda config: folder)

    return folder


def test_held_out_sentences_are_not_in_it(corpus: Path) -> None:
    said = set((corpus / "valid.wrd").read_text().splitlines())

    everything = [" ".join(words) for words in demo_sentences(set())]

    kept = [" ".join(words) for words in demo_sentences(said)]

    assert len(everything) == 200
    assert said <= set(everything)
    assert kept == [line for line in everything if line not in said]


def test_it_is_made_once_from_the_words_of_the_grammar(corpus: Path, tmp_path: Path) -> None:
    config = DemoCorpusConfig(cache_dir=tmp_path / "cache")

    path = ensure_demo_lm(config)

    words = {w for w in open_ngram_file(path).words or () if not w.startswith("<")}

    assert path.parent == tmp_path / "cache"
    assert words <= {w.upper() for w in vocabulary()}
    assert "THE" in words

    before = path.stat().st_mtime_ns

    assert ensure_demo_lm(config) == path
    assert path.stat().st_mtime_ns == before

    content = path.read_bytes()

    path.unlink()

    assert ensure_demo_lm(config).read_bytes() == content

    # Another validation part is another model.
    (corpus / "valid.wrd").write_text("THE CAT\n")

    assert ensure_demo_lm(config) != path


def test_its_name_stands_for_its_path(corpus: Path, tmp_path: Path) -> None:
    demo = DemoCorpusConfig(cache_dir=tmp_path / "cache")

    config = DecoderConfig(name="beam", lm="demo", beam=7)

    assert resolve_decoder(config, demo) == DecoderConfig(name="beam", lm=str(ensure_demo_lm(demo)), beam=7)

    other = DecoderConfig(name="beam", lm="x.arpa")

    assert resolve_decoder(other, demo) is other
