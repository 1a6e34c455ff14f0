"""Transcripts from the files that people have, and what is wrong with them, all at once."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import ctc_loss

from hubert_plugin.data.ctc_problems import judge_texts
from hubert_plugin.data.ctc_text import SplitTexts, prepare_texts, required_frames
from hubert_plugin.data.manifest import Manifest, read_manifest, write_manifest
from hubert_plugin.data.subset import draw_minutes
from hubert_plugin.data.transcripts import TranscriptConfig, Transcripts, read_transcripts, warn_of_unlisted
from hubert_plugin.data.utterance_ids import write_utterance_ids
from hubert_plugin.errors import TextError
from hubert_plugin.text.family import HubertLettersConfig, create_letters
from hubert_plugin.text.normalization import TextConfig
from hubert_plugin.text.tokenizer import CtcTokenizer

REFS = ("s1/a.wav", "s1/b.wav", "s2/a.wav")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    write_manifest(tmp_path / "train.tsv", "wav", [(ref, 16000) for ref in REFS])

    return read_manifest(tmp_path, "train", check_files=False)


def write(manifest: Manifest, name: str, text: str | bytes) -> Path:
    path = manifest.path.parent / name

    path.parent.mkdir(parents=True, exist_ok=True)

    path.write_bytes(text.encode() if isinstance(text, str) else text)

    return path


def read(manifest: Manifest, **config: object) -> list[str]:
    return read_transcripts(manifest, TranscriptConfig(**config)).texts  # type: ignore[arg-type]


class TestFormats:
    def test_lines_of_words(self, manifest: Manifest) -> None:
        write(manifest, "train.wrd", "the cat\n\n a  dog \n")

        found = read_transcripts(manifest, TranscriptConfig())

        assert found.texts == ["the cat", "", "a  dog"]
        assert found.lines == [1, 2, 3]

    def test_lines_of_letters(self, manifest: Manifest) -> None:
        write(manifest, "train.ltr", "T H E | C A T |\r\nA |\nD O G ' S |\n")

        assert read(manifest) == ["THE CAT", "A", "DOG'S"]

    def test_words_are_preferred_to_letters_and_a_name_chooses(self, manifest: Manifest) -> None:
        write(manifest, "train.ltr", "A |\nB |\nC |\n")
        write(manifest, "train.wrd", "x\ny\nz\n")
        write(manifest, "train.phn", "AH B\nB\nK\n")

        assert read(manifest) == ["x", "y", "z"]
        assert read(manifest, name="ltr") == ["A", "B", "C"]
        assert read(manifest, name="phn") == ["AH B", "B", "K"]

    def test_kaldis_text_is_matched_by_kaldis_ids(self, manifest: Manifest) -> None:
        write_utterance_ids(manifest.path, ["u1", "u2", "u3"])

        write(manifest, "train/text", "u3 three\nu1 one  word\nu2\n")

        found = read_transcripts(manifest, TranscriptConfig())

        assert found.texts == ["one  word", "", "three"]
        assert found.lines == [2, 3, 1]

    @pytest.mark.parametrize("keys", [REFS, [r[:-4] for r in REFS]])
    def test_one_file_for_all_splits_is_matched_by_paths(self, manifest: Manifest, keys: list[str]) -> None:
        rows = [*zip(keys, "ABC", strict=True), ("other/split", "D")]

        file = write(manifest, "text", "".join(f"{k} {t}\n" for k, t in rows))

        assert read(manifest) == ["A", "B", "C"]
        assert read(manifest, file=file) == ["A", "B", "C"]

    def test_bare_names_match_only_where_they_are_unique(self, manifest: Manifest, tmp_path: Path) -> None:
        write(manifest, "train.text", "a A\nb B\n")

        with pytest.raises(TextError, match=r"'s1/a.wav' has no transcript"):
            read(manifest)

        write_manifest(tmp_path / "u" / "train.tsv", "wav", [("s1/a.wav", 16000), ("s2/b.wav", 16000)])

        unique = read_manifest(tmp_path / "u", "train", check_files=False)

        assert read(unique, dir=tmp_path) == ["A", "B"]

    def test_column_of_a_table(self, manifest: Manifest) -> None:
        table = "client\tpath\tsentence\n1\ts2/a.wav\tC c\n1\ts1/a.wav\tA\n2\ts1/b.wav\tB\n"

        file = write(manifest, "all.tsv", table)

        assert read(manifest, file=file, column="sentence") == ["A", "B", "C c"]


class TestFilesForAllSplits:
    """What no split has is told: a typing error in an id would otherwise silently take audio away."""

    @pytest.fixture
    def valid(self, manifest: Manifest) -> Manifest:
        write_manifest(manifest.path.parent / "valid.tsv", "wav", [("s3/v.wav", 16000)])

        return read_manifest(manifest.path.parent, "valid", check_files=False)

    def test_what_no_split_has_is_named(
        self, manifest: Manifest, valid: Manifest, caplog: pytest.LogCaptureFixture
    ) -> None:
        ids = [*(f"ghost{i}" for i in range(7)), *REFS, "s3/v.wav"]

        file = write(manifest, "all.tsv", "path\ttext\n" + "".join(f"{i}\tA\n" for i in ids))

        found = {m.split: read_transcripts(m, TranscriptConfig(file=file)) for m in (manifest, valid)}

        with caplog.at_level(logging.WARNING):
            warn_of_unlisted(found)

        (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]

        assert "7 transcripts of no utterance of 'train' or 'valid': 'ghost0' (line 2)," in record.getMessage()
        assert "'ghost4' (line 6) and 2 more" in record.getMessage()
        assert "s3/v.wav" not in caplog.text

    def test_what_is_the_other_splits_is_no_matter(
        self, manifest: Manifest, valid: Manifest, caplog: pytest.LogCaptureFixture
    ) -> None:
        write(manifest, "text", "".join(f"{i} A\n" for i in (*REFS, "s3/v.wav")))

        with caplog.at_level(logging.WARNING):
            warn_of_unlisted({m.split: read_transcripts(m, TranscriptConfig()) for m in (manifest, valid)})

        assert not caplog.records


class TestBadFiles:
    def test_none_at_all(self, manifest: Manifest) -> None:
        with pytest.raises(TextError, match=r"no transcripts of the split 'train'.*none of train.wrd, train.ltr"):
            read(manifest)

        with pytest.raises(TextError, match="the file does not exist"):
            read(manifest, name="wrd")

    def test_another_number_of_lines(self, manifest: Manifest) -> None:
        write(manifest, "train.wrd", "one\ntwo\n")

        with pytest.raises(TextError, match=r"a line for each of the 3 utterances of .*, but have 2"):
            read(manifest)

    def test_audio_without_transcripts_and_the_reverse(self, manifest: Manifest) -> None:
        write(manifest, "train.text", "s1/a.wav A\nghost B\nphantom C\n")

        with pytest.raises(TextError) as ex:
            read(manifest)

        for part in (
            "train.tsv:3: 's1/b.wav' has no transcript",
            "train.tsv:4: 's2/a.wav' has no transcript",
            "train.text:2: there is no utterance 'ghost'",
            "train.text:3: there is no utterance 'phantom'",
        ):
            assert part in str(ex.value)

    @pytest.mark.parametrize(
        ("name", "content", "text"),
        [
            ("train.text", "a A\n\na B\n", r"(?s)train.text:2: .*an empty line.*train.text:3: 'a' is named again"),
            ("train.wrd", b"one\nt\xe4g\nthree\n", r"not UTF-8: line 2 has the byte 0xe4"),
        ],
    )
    def test_malformed_files(self, manifest: Manifest, name: str, content: str | bytes, text: str) -> None:
        write(manifest, name, content)

        with pytest.raises(TextError, match=text):
            read(manifest)

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            ("", "expected a head line with the column 'path', found: nothing"),
            ("path\tx\n", "expected a head line with the column 'text', found: 'path', 'x'"),
            ("path\ttext\na\nb\tB\tB\nc\tC\nc\tC\n", r"(?s)found 1.*found 3.*'c' is named again \(line 4\)"),
        ],
    )
    def test_malformed_tables(self, manifest: Manifest, content: str, text: str) -> None:
        with pytest.raises(TextError, match=text):
            read(manifest, file=write(manifest, "t.tsv", content))


def ctc_can_emit(symbols: list[int], num_frames: int) -> bool:
    """Whether any path emits ``symbols``, by PyTorch's loss of uniform scores."""
    log_probs = torch.full((num_frames, 1, 6), -1.0).log_softmax(-1)

    loss = ctc_loss(log_probs, torch.tensor([symbols]), torch.tensor([num_frames]), torch.tensor([len(symbols)]))

    return bool(loss.isfinite())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_required_frames_are_those_that_the_loss_needs(symbols: list[int]) -> None:
    needed = required_frames(symbols)

    assert ctc_can_emit(symbols, needed)
    assert needed == 1 or not ctc_can_emit(symbols, needed - 1)


class TestPreparation:
    SIZES = (16000, 16000, 1200, 1360, 16000, 16000)

    TEXTS = ("the cat", "na\u00efve 3", "abcd", "aab", "", "  ")

    def prepare(self, folder: Path, *, case: str = "upper", tokenizer: CtcTokenizer | None = None) -> SplitTexts:
        write_manifest(folder / "train.tsv", "wav", [(f"u{i}.wav", n) for i, n in enumerate(self.SIZES)])

        manifest = read_manifest(folder, "train", check_files=False)

        transcripts = Transcripts(folder / "train.wrd", list(self.TEXTS), list(range(1, 7)))

        tokenizer = tokenizer or create_letters(HubertLettersConfig())

        texts, problems = prepare_texts(
            manifest, transcripts, tokenizer, TextConfig(case=case), candidates=self.candidates
        )

        judge_texts(
            problems,
            tokenizer.vocabulary,
            on_bad_text=self.on_bad_text,  # type: ignore[arg-type]
            on_long_text=self.on_long_text,  # type: ignore[arg-type]
        )

        return texts

    candidates: NDArray[np.int64] = np.arange(6)
    on_bad_text = "skip"
    on_long_text = "skip"

    def test_what_is_left_out_is_counted(self, tmp_path: Path) -> None:
        texts = self.prepare(tmp_path)

        # Three frames for ABCD| (5), three for AAB| (5 with the blank between the As).
        assert texts.usable.tolist() == [0]
        assert texts.num_skipped == {"empty": 2, "unspellable": 1, "too_long": 2}
        assert texts.texts[0] == "THE CAT"
        assert create_letters(HubertLettersConfig()).decode(texts.tokens[0].tolist()) == "THE CAT"

    def test_unspellable_characters_are_named_with_their_utterances(self, tmp_path: Path) -> None:
        self.on_bad_text = "raise"

        with pytest.raises(TextError, match=r"1 transcript of .* has .* \(3 \u00cf\).*") as ex:
            self.prepare(tmp_path)

        assert "train.wrd:2: 'u1.wav' has '3', '\u00cf'" in str(ex.value)
        assert "dataset.on_bad_text=skip" in str(ex.value)

    def test_empty_transcripts_are_named(self, tmp_path: Path) -> None:
        self.on_bad_text, self.candidates = "raise", np.array([0, 4, 5])

        with pytest.raises(TextError, match=r"(?s)2 transcripts .* are empty.*'u4.wav'.*'u5.wav'"):
            self.prepare(tmp_path)

    def test_too_many_symbols_are_named_with_what_is_needed(self, tmp_path: Path) -> None:
        self.on_long_text = "raise"

        with pytest.raises(TextError, match="more symbols than their audio has frames") as ex:
            self.prepare(tmp_path)

        assert "'u2.wav' needs 5 frames for 5 symbols, but its audio has 3 (0.07 s)" in str(ex.value)
        assert "'u3.wav' needs 5 frames for 4 symbols, but its audio has 4" in str(ex.value)

    def test_all_kinds_are_named_in_the_order_of_lines(self, tmp_path: Path) -> None:
        self.on_bad_text = self.on_long_text = "raise"

        with pytest.raises(TextError) as ex:
            self.prepare(tmp_path)

        lines = str(ex.value).splitlines()

        assert [line.split("'")[1] for line in lines[1:]] == [f"u{i}.wav" for i in range(1, 6)]

        for part in ("1 transcript of", "2 transcripts of the split 'train' are empty", "on_bad_text", "on_long_text"):
            assert part in lines[0]

    def test_only_what_is_not_left_out_is_refused(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.on_long_text = "raise"

        with caplog.at_level(logging.WARNING), pytest.raises(TextError) as ex:
            self.prepare(tmp_path)

        assert "on_bad_text" not in str(ex.value) and "'u1.wav'" not in str(ex.value)

        # Nobody is told to leave out what is left out already.
        assert "Left out: 1 transcript of" in caplog.text and "'u1.wav'" in caplog.text
        assert "=skip" not in caplog.text and "'u2.wav'" not in caplog.text

    def test_utterances_that_nobody_asked_for_are_not_looked_at(self, tmp_path: Path) -> None:
        self.on_bad_text = self.on_long_text = "raise"

        self.candidates = np.array([0])

        assert self.prepare(tmp_path).usable.tolist() == [0]

    def test_wrong_case_is_said(self, tmp_path: Path) -> None:
        self.on_bad_text, self.candidates = "raise", np.array([0])

        with pytest.raises(TextError, match=r"letters are all upper case: set `task.config.text.case=upper`"):
            self.prepare(tmp_path, case="none")

    def test_the_first_20_are_shown_and_the_rest_counted(self, tmp_path: Path) -> None:
        write_manifest(tmp_path / "train.tsv", "wav", [(f"u{i}.wav", 16000) for i in range(25)])

        manifest = read_manifest(tmp_path, "train", check_files=False)

        tokenizer = create_letters(HubertLettersConfig())

        _, problems = prepare_texts(
            manifest,
            Transcripts(tmp_path / "train.wrd", ["\u00e9"] * 25, list(range(1, 26))),
            tokenizer,
            TextConfig(),
            candidates=np.arange(25),
        )

        with pytest.raises(TextError) as ex:
            judge_texts(problems, tokenizer.vocabulary, on_bad_text="raise", on_long_text="raise")

        assert "25 transcripts" in str(ex.value) and "'u19.wav'" in str(ex.value)
        assert "'u20.wav'" not in str(ex.value) and "… and 5 more" in str(ex.value)


class TestSubset:
    @pytest.fixture(scope="class")
    def many(self, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
        folder = tmp_path_factory.mktemp("subset")

        rng = np.random.default_rng(0)

        rows = [
            (f"s{speaker}/{i:03}.wav", int(rng.integers(16000, 80000)))
            for speaker in range(12)
            for i in range(10 + 5 * speaker)
        ]

        write_manifest(folder / "train.tsv", "wav", rows)

        return read_manifest(folder, "train", check_files=False)

    def test_minutes_are_those_asked_for_spread_over_speakers(self, many: Manifest) -> None:
        drawn = draw_minutes(many, np.arange(len(many)), 5.0, seed=1)

        minutes = many.sizes[drawn].sum() / 16000 / 60

        assert 5.0 <= minutes < 5.0 + 5 / 60

        counts = [sum(many.ids[i].startswith(f"s{s}/") for i in drawn) for s in range(12)]

        assert min(counts) >= max(counts) - 1
        assert sorted(set(drawn.tolist())) == drawn.tolist()

    def test_same_seed_draws_the_same_and_more_minutes_hold_fewer(self, many: Manifest) -> None:
        everything = np.arange(len(many))

        few, more = (set(draw_minutes(many, everything, m, seed=1).tolist()) for m in (2.0, 6.0))

        assert few < more
        assert few == set(draw_minutes(many, everything, 2.0, seed=1).tolist())
        assert few != set(draw_minutes(many, everything, 2.0, seed=2).tolist())

    def test_only_candidates_are_drawn_and_all_where_they_are_too_few(self, many: Manifest) -> None:
        candidates = np.arange(0, len(many), 7)

        assert set(draw_minutes(many, candidates, 1.0, seed=0).tolist()) <= set(candidates.tolist())
        assert draw_minutes(many, candidates, 1e6, seed=0).tolist() == candidates.tolist()
