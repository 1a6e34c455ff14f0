"""ABX against fastabx, an independent implementation of ZeroSpeech's, where it is installed (Python 3.12 or newer):
from the item file and the features to the error, the options that draw tokens at random switched off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hubert_plugin.analysis.abx import AbxCollector, make_task, read_items
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.frames import num_frames, num_samples_of

# 0.6.1 is compiled for PyTorch 2.9 and wants `pip install fastabx 'polars<1.33'`.
fastabx = pytest.importorskip("fastabx", exc_type=ImportError)


def make_corpus(folder: Path, seed: int) -> tuple[Path, Manifest, dict[str, np.ndarray]]:
    """Write an item file and features: several speakers, phones and contexts, some of which lack tokens, some once."""
    rng = np.random.default_rng(seed)

    dim = int(rng.integers(2, 9))

    ids = [f"s{i % 3}/u{i}" for i in range(7)]

    features = {id_: rng.standard_normal((int(rng.integers(60, 90)), dim)).astype(np.float32) for id_ in ids}

    (folder / "features").mkdir()

    for id_, f in features.items():
        path = folder / "features" / f"{id_}.pt"
        path.parent.mkdir(exist_ok=True)

        torch.save(torch.from_numpy(f), path)

    lines = ["#file onset offset #phone prev-phone next-phone speaker"]

    for id_ in ids:
        for _ in range(int(rng.integers(5, 14))):
            # Milliseconds, and now and then a border between frames, where roundings differ if they are to.
            onset = int(rng.integers(0, 900))
            onset -= onset % int(rng.choice([1, 5, 10]))

            offset = onset + int(rng.integers(30, 250))

            phone, before, after = (str(rng.choice(list(names))) for names in ("pqr", "xy", "xy"))

            lines.append(f"{id_} {onset / 1000:.3f} {offset / 1000:.3f} {phone} {before} {after} {id_[:2]}")

    path = folder / "valid.item"
    path.write_text("\n".join(lines) + "\n")

    sizes = np.array([num_samples_of(len(features[id_])) for id_ in ids], np.int64)

    assert [num_frames(int(n)) for n in sizes] == [len(features[id_]) for id_ in ids]

    manifest = Manifest(folder / "valid.tsv", "valid", folder, [f"{id_}.flac" for id_ in ids], sizes)

    return path, manifest, {f"{id_}.flac": f for id_, f in features.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("speaker", ["within", "across"])
@pytest.mark.parametrize("context", ["within", "any"])
def test_the_error_is_that_of_fastabx(tmp_path: Path, seed: int, speaker: str, context: str) -> None:
    path, manifest, features = make_corpus(tmp_path, seed)

    expected = fastabx.zerospeech_abx(
        path,
        tmp_path / "features",
        max_size_group=None,
        max_x_across=None,
        speaker=speaker,
        context=context,
    )

    task = make_task(
        read_items(path, manifest),
        speaker=speaker,  # type: ignore[arg-type]
        context=context,  # type: ignore[arg-type]
        max_size_group=None,
        max_x_across=None,
    )

    collector = AbxCollector([task.items], manifest.ids)

    for id_, f in features.items():
        collector.add(id_, {"L1": f})

    score = collector.score("L1", {"task": task})["task"]

    assert score.num_cells > 5 and 0.0 < score.error < 1.0

    assert score.error == pytest.approx(expected, abs=1e-6)
