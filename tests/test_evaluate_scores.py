"""Error rates of a set of utterances, against numbers counted by hand; their intervals; and the files they are in."""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hubert_plugin.decoding.bootstrap import bootstrap_interval
from hubert_plugin.decoding.distance import EditCounts
from hubert_plugin.decoding.scoring import evaluate_pairs, score_pair
from hubert_plugin.decoding.texts import Pair, Texts, pair_texts, read_texts
from hubert_plugin.errors import TextError

PAIRS = [
    Pair("a", "the cat sat on the mat", "the cat sat on mat"),  # a deletion
    Pair("b", "a dog ran", "a big dog run"),  # an insertion and a substitution
    Pair("c", "yes", "yes"),
    Pair("d", "", "uh"),  # an insertion into nothing
    Pair("e", "we ran", ""),  # two deletions
]


def test_rates_are_those_counted_by_hand() -> None:
    evaluation = evaluate_pairs(PAIRS)

    wer = evaluation.wer.counts

    assert (wer.substitutions, wer.insertions, wer.deletions, wer.reference_length) == (1, 2, 3, 12)
    assert wer.rate == 0.5

    # Spaces are characters: "the " gone; "big " added and a letter changed; "uh" added; "we ran" gone.
    cer = evaluation.cer.counts

    assert (cer.substitutions, cer.insertions, cer.deletions) == (1, 4 + 2, 4 + 6)
    assert cer.reference_length == 22 + 9 + 3 + 0 + 6

    assert evaluation.sentence_error_rate == 0.8
    assert (evaluation.num_empty_references, evaluation.num_empty_hypotheses) == (1, 1)
    assert evaluation.confusions(3) == [("", "big", 1), ("", "uh", 1), ("ran", "", 1)]
    assert evaluation.confusions(0) == []


def test_errors_name_what_was_said_and_written() -> None:
    score = score_pair(Pair("b", "a dog ran", "a big dog run"))

    assert score.errors == (("", "big"), ("ran", "run"))


def test_rates_are_those_of_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer")

    rng = random.Random(0)

    def words() -> str:
        return " ".join(rng.choice(["a", "b", "cat", "dog", "house"]) for _ in range(rng.randint(1, 12)))

    pairs = [Pair(str(i), words(), words()) for i in range(50)]

    evaluation = evaluate_pairs(pairs, num_draws=1)

    refs, hyps = [p.reference for p in pairs], [p.hypothesis for p in pairs]

    assert evaluation.wer.counts.rate == pytest.approx(jiwer.wer(refs, hyps))
    assert evaluation.cer.counts.rate == pytest.approx(jiwer.cer(refs, hyps))


def test_the_table_has_a_line_for_each_utterance() -> None:
    head, *rows = evaluate_pairs(PAIRS).utterance_table().splitlines()

    columns = head.split("\t")

    table = [dict(zip(columns, row.split("\t"), strict=True)) for row in rows]

    assert [r["id"] for r in table] == list("abcde")
    assert [r["wer"] for r in table] == ["0.1667", "0.6667", "0.0000", "inf", "1.0000"]
    assert table[1]["errors"] == "* > big; ran > run"
    assert (table[0]["words"], table[0]["deletions"], table[0]["hypothesis"]) == ("6", "1", "the cat sat on mat")


def test_results_are_plain_data_and_tables() -> None:
    evaluation = evaluate_pairs(PAIRS)

    result = json.loads(json.dumps(evaluation.to_dict(2)))

    assert result["wer"]["rate"] == 0.5
    assert result["wer"]["low"] <= 0.5 <= result["wer"]["high"]
    assert len(result["confusions"]) == 2

    console = Console(width=120, record=True, file=io.StringIO())

    for table in evaluation.tables(2, real_time_factor=0.0123):
        console.print(table)

    text = console.export_text()

    assert "50.00" in text
    assert "0.0123" in text
    assert "big" in text


def test_words_in_brackets_are_words() -> None:
    """rich takes them for markup."""
    console = Console(width=120, record=True, file=io.StringIO())

    for table in evaluate_pairs([Pair("a", "a b [/unk] c", "a b [noise] c")]).tables(5, None):
        console.print(table)

    text = console.export_text()

    assert "[/unk]" in text and "[noise]" in text


@pytest.mark.parametrize("pairs", [[], [Pair("a", "", "x"), Pair("b", "", "")]])
def test_references_without_words_are_refused(pairs: list[Pair]) -> None:
    with pytest.raises(TextError, match="references are empty: there is nothing to measure against"):
        evaluate_pairs(pairs)


def test_an_interval_is_that_of_the_formula_for_equal_lengths() -> None:
    """With one word an utterance the rate of a draw is a mean: the bootstrap's deviation is the textbook's."""
    counts = [EditCounts(int(i % 4 == 0), 0, 0, 1) for i in range(400)]

    low, high = bootstrap_interval(counts, num_draws=4000)

    deviation = math.sqrt(0.25 * 0.75 / 400)

    assert low == pytest.approx(0.25 - 1.96 * deviation, abs=0.006)
    assert high == pytest.approx(0.25 + 1.96 * deviation, abs=0.006)

    narrow = bootstrap_interval(counts, level=0.5, num_draws=4000)

    assert low < narrow[0] < narrow[1] < high


def test_an_interval_is_that_of_draws_one_by_one() -> None:
    rng = np.random.default_rng(3)

    counts = [
        EditCounts(int(e), 0, 0, int(n)) for e, n in zip(rng.integers(0, 5, 30), rng.integers(1, 9, 30), strict=True)
    ]

    other = random.Random(5)

    rates = []

    for _ in range(4000):
        draw = [other.choice(counts) for _ in counts]

        rates.append(sum(draw, EditCounts()).rate)

    expected = np.quantile(rates, [0.025, 0.975])

    assert bootstrap_interval(counts, num_draws=4000, seed=1) == pytest.approx(tuple(expected), rel=0.03)


def test_intervals_depend_on_the_seed_alone() -> None:
    counts = [EditCounts(i % 3, 0, 0, 4) for i in range(20)]

    assert bootstrap_interval(counts, seed=7) == bootstrap_interval(counts, seed=7)
    assert bootstrap_interval(counts, seed=7) != bootstrap_interval(counts, seed=8)


def test_draws_of_empty_references_alone_do_not_count() -> None:
    low, high = bootstrap_interval([EditCounts(0, 3, 0, 0), EditCounts(1, 0, 0, 2)], num_draws=200)

    assert low == pytest.approx(0.5)
    assert math.isfinite(high)


def test_one_utterance_has_no_width() -> None:
    assert bootstrap_interval([EditCounts(1, 0, 0, 4)]) == (0.25, 0.25)


@pytest.mark.parametrize("options", [{"level": 1.0}, {"level": 0.0}, {"num_draws": 0}])
def test_intervals_of_nonsense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="`level`"):
        bootstrap_interval([EditCounts(1, 0, 0, 4)], **options)  # type: ignore[arg-type]


def test_an_interval_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="`counts`"):
        bootstrap_interval([EditCounts(0, 1, 0, 0)])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.wrd", "\n", (None, [""])),  # one recording, in which nothing was recognised
        ("x.wrd", "A B\n\nC\n", (None, ["A B", "", "C"])),
        ("x.txt", "A  B\r\nC\r\n", (None, ["A B", "C"])),
        ("x.ltr", "A B | C |\n|\n", (None, ["AB C", ""])),
        ("text", "u1 A B\nu2\n", (["u1", "u2"], ["A B", ""])),
        ("x.text", "u1\tA B\n", (["u1"], ["A B"])),
        ("x.jsonl", b'{"id": "caf\xe9.wav", "text": "CAF\xc3\x89"}\n', (["caf\udce9.wav"], ["CAF\u00c9"])),
        ("text", b"caf\xe9 A B\n", (["caf\udce9"], ["A B"])),
        ("x.jsonl", '{"id": "u1", "text": "A  B", "score": 1}\n', (["u1"], ["A B"])),
        ("x.tsv", "path\tspeaker\ttext\nu1\ts\tA B\nu2\ts\t\n", (["u1", "u2"], ["A B", ""])),
    ],
)
def test_files_of_all_kinds_are_read(
    tmp_path: Path, name: str, content: str | bytes, expected: tuple[list[str] | None, list[str]]
) -> None:
    path = tmp_path / name

    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    texts = read_texts(path)

    assert (texts.ids, texts.texts) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.wrd", None, "There is no file"),
        ("x.wrd", b"", "is empty"),
        ("x.wrd", b"A\nCAF\xc9\n", r"cannot be read(.|\n)*x\.wrd:2: expected UTF-8, found 'CAF\\udcc9'"),
        ("text", b"caf\xe9 CAF\xc9\n", r"cannot be read(.|\n)*'caf\\udce9': expected UTF-8"),
        ("x.jsonl", b'{"id": "u1", "text": "\\ud83d"}\n', r"cannot be read(.|\n)*'u1': expected UTF-8"),
        ("text", b"u1 A\n\nu1 B\n", r":2: expected an utterance id(.|\n)*:3: 'u1' is named again \(line 1\)"),
        ("x.jsonl", b'{"id": 3}\nnonsense\n', r":1: expected a JSON record(.|\n)*:2: expected a JSON record"),
        ("x.tsv", b"id\ttext\nu1\tA\n", "lacks 'path'; found 'id', 'text'"),
        ("x.tsv", b"path\ttext\nu1\n", ":2: expected 2 fields"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name

    if content is not None:
        path.write_bytes(content)

    with pytest.raises(TextError, match=message):
        read_texts(path)


def test_a_folder_is_no_file_of_texts(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="is a folder, but must be a file with the words of an utterance in each line"):
        read_texts(tmp_path)


def texts(name: str, **by_id: str) -> Texts:
    return Texts(Path(name), list(by_id.values()), [k.replace("__", "/").replace("_dot_", ".") for k in by_id])


def test_utterances_are_paired_by_ids_in_the_order_of_the_references() -> None:
    pairs = pair_texts(texts("r", a="1", b="2"), texts("h", b="x", a="y"))

    assert pairs == [Pair("a", "1", "y"), Pair("b", "2", "x")]


def test_ids_match_without_folders_and_endings() -> None:
    pairs = pair_texts(texts("r", a="1", b="2"), texts("h", dir__b_dot_wav="x", dir__a_dot_wav="y"))

    assert pairs == [Pair("a", "1", "y"), Pair("b", "2", "x")]

    # Not where base names repeat (trap T37).
    with pytest.raises(TextError, match="do not match"):
        pair_texts(texts("r", a="1"), texts("h", d1__a_dot_wav="x", d2__a_dot_wav="y"))


def test_lines_are_paired_where_a_file_has_no_ids() -> None:
    lines = Texts(Path("r.wrd"), ["1", "2"])

    assert pair_texts(lines, texts("h", b="x", a="y")) == [Pair("b", "1", "x"), Pair("a", "2", "y")]
    assert pair_texts(lines, Texts(Path("h"), ["x", "y"])) == [Pair("1", "1", "x"), Pair("2", "2", "y")]

    with pytest.raises(TextError, match=r"paired by their lines.*have 2 and 1 utterances"):
        pair_texts(lines, texts("h", b="x"))


def test_utterances_of_one_file_only_are_named() -> None:
    with pytest.raises(TextError) as info:
        pair_texts(texts("refs", a="1", b="2", c="3"), texts("hyps", a="x", d="y"))

    text = str(info.value)

    assert "(3 utterances)" in text
    assert "'b' has no hypothesis." in text
    assert "'c' has no hypothesis." in text
    assert "'d' has no reference." in text


def test_missing_hypotheses_may_count_as_empty() -> None:
    pairs = pair_texts(texts("refs", a="1", b="2"), texts("hyps", a="x"), allow_missing=True)

    assert pairs == [Pair("a", "1", "x"), Pair("b", "2", "")]

    with pytest.raises(TextError, match="'d' has no reference"):
        pair_texts(texts("refs", a="1"), texts("hyps", d="x"), allow_missing=True)
