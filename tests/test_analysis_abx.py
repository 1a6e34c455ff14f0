"""ABX against an oracle that is written plainly: loops over triples and tables."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.analysis.abx import AbxCollector, Items, abx_score, make_task, read_items
from hubert_plugin.analysis.abx.dtw import normalize_frames, token_distances
from hubert_plugin.analysis.abx.items import frame_span
from hubert_plugin.analysis.run import _name_items
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.errors import LabelError


def frame_distance(x: np.ndarray, y: np.ndarray) -> float:
    norms = np.linalg.norm(x) * np.linalg.norm(y)

    return math.acos(min(1.0, max(-1.0, float(x @ y / norms)))) / math.pi if norms else 0.5


def oracle_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The textbook's table of costs, and the way back from its end."""
    d = [[frame_distance(a, b) for b in y] for a in x]

    cost = [[math.inf] * len(y) for _ in x]

    for i, j in product(range(len(x)), range(len(y))):
        before = [cost[p][q] for p, q in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if p >= 0 and q >= 0]

        cost[i][j] = d[i][j] + (min(before) if before else 0.0)

    i, j, length = len(x) - 1, len(y) - 1, 1

    while i > 0 or j > 0:
        steps = [(p, q) for p, q in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p >= 0 and q >= 0]

        i, j = min(steps, key=lambda s: cost[s[0]][s[1]])  # the first of equals: the diagonal

        length += 1

    return cost[-1][-1] / length


def oracle_error(
    tokens: list[np.ndarray], rows: list[tuple[str, str, str]], speaker: str, context: str
) -> tuple[float, int]:
    """The error over all triples, averaged over contexts with X's speakers, then speakers, then pairs of phones; and
    the number of cells.

    :param rows: Phone, context and speaker of each token.
    """
    distance = {
        (i, j): oracle_distance(tokens[i], tokens[j]) for i in range(len(tokens)) for j in range(len(tokens)) if i != j
    }

    triples: dict[tuple[str, ...], list[float]] = defaultdict(list)

    for x, a, b in product(range(len(rows)), repeat=3):
        (px, cx, sx), (pa, ca, sa), (pb, cb, sb) = rows[x], rows[a], rows[b]

        if x == a or px != pa or pa == pb or sa != sb or (speaker == "within") != (sx == sa):
            continue

        if context == "within" and not cx == ca == cb:
            continue

        error = (1 + np.sign(distance[a, x] - distance[b, x])) / 2

        triples[pa, pb, sa, sx, ca if context == "within" else ""].append(float(error))

    level = {key: np.mean(errors) for key, errors in triples.items()}

    # Contexts and speakers of X are averaged together (libri-light, eval_ABX.py: the sum over dimensions 3 and 4).
    for length in (3, 2):
        groups = defaultdict(list)

        for key, error in level.items():
            groups[key[:length]].append(error)

        level = {key: np.mean(errors) for key, errors in groups.items()}

    return float(np.mean(list(level.values()))), len(triples)


def make_items(rows: list[tuple[str, str, str]], lengths: np.ndarray) -> Items:
    columns = [np.unique([row[i] for row in rows], return_inverse=True) for i in range(3)]

    starts = np.cumsum(lengths) - lengths

    return Items(
        Path("x.item"),
        np.zeros(len(rows), np.int64),
        starts,
        lengths,
        columns[0][1],
        columns[1][1],
        columns[2][1],
        columns[0][0].tolist(),
        columns[2][0].tolist(),
        0,
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["within", "across"]), st.sampled_from(["within", "any"]))
def test_equals_the_oracle(seed: int, speaker: str, context: str) -> None:
    rng = np.random.default_rng(seed)

    count = int(rng.integers(8, 22))

    rows = [
        (str(rng.choice(list("pqr"))), str(rng.choice(list("12"))), str(rng.choice(list("st")))) for _ in range(count)
    ]

    lengths = rng.integers(1, 7, count)

    features = rng.standard_normal((int(lengths.sum()), 5))

    # Tokens that are repeated make equal distances, which count half; frames of zeros have no angle.
    for _ in range(3):
        i, j = rng.integers(0, count, 2)

        starts = np.cumsum(lengths) - lengths

        n = min(lengths[i], lengths[j])

        features[starts[i] : starts[i] + n] = features[starts[j] : starts[j] + n]

    features[rng.integers(0, len(features))] = 0.0

    items = make_items(rows, lengths)

    tokens = [features[s : s + n] for s, n in zip(items.starts, lengths, strict=True)]

    try:
        task = make_task(items, speaker=speaker, context=context, max_size_group=None, max_x_across=None)  # type: ignore[arg-type]
    except LabelError as ex:
        assert f"nothing to compare {speaker} speakers" in str(ex)

        return

    score = abx_score(task, normalize_frames(torch.from_numpy(features)), items.starts, items.lengths)

    expected, num_cells = oracle_error(tokens, rows, speaker, context)

    assert score.num_cells == num_cells
    assert score.error == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_distances_of_tokens_of_any_length_equal_the_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)

    lengths = rng.integers(1, 15, 9)

    starts = np.cumsum(lengths) - lengths

    features = rng.standard_normal((int(lengths.sum()), 4))

    pairs = np.array([(i, j) for i in range(9) for j in range(9)])

    got = token_distances(normalize_frames(torch.from_numpy(features)), starts, lengths, pairs)

    tokens = [features[s : s + n] for s, n in zip(starts, lengths, strict=True)]

    # A token with itself: the arc cosine of nearly 1 is not nearly 0.
    assert got == pytest.approx([oracle_distance(tokens[i], tokens[j]) for i, j in pairs], abs=2e-8)


def test_many_batches_give_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)

    lengths = rng.integers(1, 30, 40)

    starts = np.cumsum(lengths) - lengths

    frames = normalize_frames(torch.from_numpy(rng.standard_normal((int(lengths.sum()), 6))))

    pairs = rng.integers(0, 40, (500, 2))

    pairs = pairs[pairs[:, 0] != pairs[:, 1]]

    whole = token_distances(frames, starts, lengths, pairs)

    monkeypatch.setattr("hubert_plugin.analysis.abx.dtw._MAX_NUMBERS", 5000)

    assert token_distances(frames, starts, lengths, pairs) == pytest.approx(whole, abs=1e-12)


def test_clear_categories_have_no_errors_and_random_ones_half() -> None:
    rng = np.random.default_rng(0)

    rows = [(p, c, s) for p in "pq" for c in "12" for s in "st" for _ in range(12)]

    lengths = rng.integers(3, 6, len(rows))

    items = make_items(rows, lengths)

    noise = rng.standard_normal((int(lengths.sum()), 16))

    centers = np.repeat([[4.0] * 8 + [0.0] * 8 if p == "p" else [0.0] * 8 + [4.0] * 8 for p, _, _ in rows], lengths, 0)

    for speaker in ("within", "across"):
        task = make_task(items, speaker=speaker, max_size_group=None, max_x_across=None)  # type: ignore[arg-type]

        def error(features: np.ndarray, task=task) -> float:  # type: ignore[no-untyped-def]
            return abx_score(task, normalize_frames(torch.from_numpy(features)), items.starts, items.lengths).error

        assert error(noise + centers) == 0.0
        assert error(noise) == pytest.approx(0.5, abs=0.05)


def test_groups_are_limited_and_drawn_from_the_seed() -> None:
    rows = [(p, "c", s) for p in "pq" for s in "stuvw" for _ in range(15)]

    items = make_items(rows, np.full(len(rows), 2, np.int64))

    def cells(seed: int, speaker: str) -> list[tuple[list[int], ...]]:
        task = make_task(items, speaker=speaker, max_size_group=4, max_x_across=2, seed=seed)  # type: ignore[arg-type]

        return [(c.a.tolist(), c.b.tolist(), c.x.tolist()) for c in task.cells]

    assert cells(0, "across") == cells(0, "across")
    assert cells(0, "across") != cells(1, "across")

    assert all(len(t) == 4 for cell in cells(0, "within") for t in cell)
    assert len(cells(0, "within")) == 2 * 5  # ordered pairs of phones, speakers
    assert len(cells(0, "across")) == 2 * 5 * 2  # and two other speakers each


def test_frames_are_those_whose_time_is_inside() -> None:
    for onset, offset, rate in [
        (0.2925, 0.4725, 50),
        (0.33, 0.37, 50),
        (0.0, 0.01, 50),
        (0.1, 0.105, 100),
        (0.3, 0.3, 50),
    ]:
        # The times are whole numbers of 0.5 ms, so nothing is rounded here.
        inside = [t for t in range(100) if 2000 * onset * rate <= 1000 * (2 * t + 1) <= 2000 * offset * rate + 1e-6]

        first, last = frame_span(onset, offset, rate)

        assert list(range(first, last + 1)) == inside


def make_manifest() -> Manifest:
    return Manifest(
        Path("corpus/valid.tsv"), "valid", Path("corpus"), ["s/a.flac", "s/b.flac"], np.array([16000, 32000], np.int64)
    )


HEAD = "#file onset offset #phone prev-phone next-phone speaker"


def test_items_are_read_with_their_frames(tmp_path: Path) -> None:
    path = tmp_path / "valid.phoneme.item"

    path.write_text(f"{HEAD}\na 0.2925 0.4725 IH L NG s1\ns/b.flac 1.9 2.05 K N AH s2\nb 0.301 0.309 T IH S s1\n")

    items = read_items(path, make_manifest())

    # The last frame of 2 s is 98; between 0.301 and 0.309 there is no frame's time.
    assert items.utterances.tolist() == [0, 1]
    assert list(zip(items.starts.tolist(), items.lengths.tolist(), strict=True)) == [(15, 9), (95, 4)]
    assert [items.phone_names[p] for p in items.phones] == ["IH", "K"]
    assert [items.speaker_names[p] for p in items.speakers] == ["s1", "s2"]
    assert items.num_without_frame == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no items"),
        (["x 0 1 A B C s", "y 0 1 A B C s"], r"of other utterances: none of its 2 files \(such as 'x'\)"),
        (["a 0 0.5 A B C s", "x 0 1 A B C s"], r"valid\.item:3: 'x' is not in the manifest"),
        (["a 0.5 0.2 A B C s"], "must end after it starts, but goes from 0.5 to 0.2 s"),
        (["a 0.5 1.2 A B C s"], "ends at 1.2 s, but 's/a.flac' has 1 s of audio"),
        (["a 0.5 A B C s"], r"valid\.item:2: expected `file onset offset phone"),
        (["a zero 0.5 A B C s"], r"valid\.item:2: expected `file onset offset phone"),
        (["a 0.301 0.309 A B C s"], "long enough to hold a frame"),
    ],
)
def test_item_files_that_do_not_fit_are_told(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "valid.item"

    path.write_text("\n".join([HEAD, *lines]) + "\n")

    with pytest.raises(LabelError, match=message):
        read_items(path, make_manifest())


def test_all_problems_of_an_item_file_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "valid.item"

    path.write_text(f"{HEAD}\na 0 0.5 A B C s\nx 0 1 A B C s\na 0.5 0.2 A B C s\nx 1 2 A B C s\nnonsense\n")

    with pytest.raises(LabelError) as info:
        read_items(path, make_manifest())

    assert str(info.value).count("\n  - ") == 3  # x is told once

    with pytest.raises(LabelError, match="cannot be read"):
        read_items(tmp_path / "none.item", make_manifest())


def test_collected_features_are_scored_where_their_items_are(tmp_path: Path) -> None:
    path = tmp_path / "valid.item"

    rng = np.random.default_rng(0)

    manifest = make_manifest()

    rows = [
        (name, on := round(float(rng.uniform(0, 0.8)), 3), round(on + float(rng.uniform(0.03, 0.2)), 3), phone)
        for name in ("a", "b")
        for phone in "PQ" * 5
    ]

    path.write_text("\n".join([HEAD, *(f"{f} {on} {off} {p} X Y s" for f, on, off, p in rows)]) + "\n")

    items = read_items(path, manifest)

    task = make_task(items, max_size_group=None)

    collector = AbxCollector([items], manifest.ids)

    features = {id_: rng.standard_normal((num, 4)) for id_, num in zip(manifest.ids, (49, 99), strict=True)}

    # In any order, and with others among them.
    for id_ in ["s/b.flac", "s/c.flac", "s/a.flac"]:
        collector.add(id_, {"L1": features.get(id_, np.zeros((7, 4)))})

    tokens = []

    for name, on, off, _ in rows:
        f = features[f"s/{name}.flac"]

        tokens.append(f[[t for t in range(len(f)) if on * 50 - 1e-6 <= t + 0.5 <= off * 50 + 1e-6]])

    expected, _ = oracle_error(tokens, [(p, "XY", "s") for *_, p in rows], "within", "within")

    assert collector.score("L1", {"t": task})["t"].error == pytest.approx(expected, abs=1e-12)

    # MFCC are scaled by utterance; what that was before does not matter.
    errors = []

    for scale, shift in ((1.0, 0.0), (50.0, -300.0)):
        mfcc = AbxCollector([items], manifest.ids)

        for id_, f in features.items():
            mfcc.add(id_, {"mfcc": scale * f + shift})

        errors.append(mfcc.score("mfcc", {"t": task})["t"].error)

    assert errors[0] == errors[1]

    partial = AbxCollector([items], manifest.ids)

    partial.add("s/a.flac", {"L1": features["s/a.flac"]})

    with pytest.raises(LabelError, match="1 utterances more than were analysed"):
        partial.score("L1", {"t": task})


def test_item_files_of_one_name_are_told_apart_by_their_folders() -> None:
    triphone, phoneme, other = Path("tri/dev.item"), Path("pho/dev.item"), Path("pho/valid.other.item")

    names = _name_items([triphone, phoneme, other], "valid")

    assert names == {triphone: "tri_dev", phoneme: "pho_dev", other: "other"}

    with pytest.raises(LabelError, match=r"must name files that differ .* 'x/tri/dev.item', 'y/tri/dev.item'"):
        _name_items([Path("x/tri/dev.item"), Path("y/tri/dev.item")], "valid")
