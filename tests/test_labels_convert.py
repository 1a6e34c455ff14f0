"""Labels go from form to form: fairseq's text, the binary form, kaldi's vectors of integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_labels import PROVENANCE, SPECS, files, make_manifest, make_units

from hubert_plugin.data.label_convert import (
    convert_labels,
    read_kaldi_labels,
    write_kaldi_labels,
)
from hubert_plugin.data.labels import open_labels, write_labels
from hubert_plugin.data.utterance_ids import read_utterance_ids, write_utterance_ids
from hubert_plugin.errors import LabelError


def test_labels_go_through_all_forms_unchanged(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, [16_000, 8_000, 32_123, 400])

    spec = SPECS[0]

    units = [make_units(manifest, i)[0] for i in range(4)]

    write_labels(tmp_path / "km", "train", spec, units, manifest, PROVENANCE)

    convert_labels(tmp_path / "km", tmp_path / "binary", "a", manifest, form="binary")
    convert_labels(tmp_path / "binary", tmp_path / "again", "a", manifest, form="km")

    assert files(tmp_path / "again") == files(tmp_path / "km")

    # In place: the form changes, and only one stays.
    convert_labels(tmp_path / "again", tmp_path / "again", "a", manifest, form="binary")

    assert (tmp_path / "again/train.a.safetensors").read_bytes() == (
        tmp_path / "binary/train.a.safetensors"
    ).read_bytes()
    assert not (tmp_path / "again/train.a").exists()

    ids = [f"utt-{i}" for i in range(4)]

    write_utterance_ids(manifest.path, ids)

    scp = write_kaldi_labels(open_labels(tmp_path / "binary", "train", "a", manifest), manifest, tmp_path / "ark")

    assert scp.read_text().split()[0] == "utt-0"

    for table in (scp, scp.with_suffix(".ark")):
        labels = read_kaldi_labels(table, "a", manifest, size=7)

        assert labels.spec == spec and [labels[i].tolist() for i in range(4)] == [u.tolist() for u in units]

    assert convert_labels(scp, tmp_path / "back", "a", manifest, form="km", size=7) == spec

    import kaldiio

    commands = tmp_path / "commands.scp"

    for idx, key in enumerate(read_utterance_ids(manifest)):
        kaldiio.save_ark(str(tmp_path / f"{idx}.ark"), {key: labels[idx]})

        with commands.open("a") as fp:
            fp.write(f"{key} tail -c +{len(key) + 2} {tmp_path}/{idx}.ark |\n")

    with pytest.raises(LabelError, match="set `allow_pipes: true`"):
        convert_labels(commands, tmp_path / "piped", "a", manifest, form="km", size=7)

    assert convert_labels(commands, tmp_path / "piped", "a", manifest, form="km", size=7, allow_pipes=True) == spec

    assert (tmp_path / "piped/train.a").read_bytes() == (tmp_path / "back/train.a").read_bytes()
    assert (tmp_path / "back/train.a").read_bytes() == (tmp_path / "km/train.a").read_bytes()


def test_kaldi_labels_that_do_not_fit_are_named_all_at_once(tmp_path: Path) -> None:
    import kaldiio

    sizes = [16_000] * 30

    manifest = make_manifest(tmp_path, sizes)

    def fail(vectors: dict[str, list[int]], **kwargs: int) -> str:
        kaldiio.save_ark(str(tmp_path / "ali.ark"), {k: np.array(v, np.int32) for k, v in vectors.items()})

        with pytest.raises(LabelError) as info:
            read_kaldi_labels(tmp_path / "ali.ark", "a", manifest, **kwargs)

        return str(info.value)

    good = {i: [1] * 49 for i in manifest.ids}

    message = fail({k: v for k, v in good.items() if k != "7.wav"} | {"other": [1]})

    assert "1 of 30 utterances are missing, 1 others are there" in message and "'7.wav' is missing" in message

    message = fail({})
    assert "is empty" in message

    message = fail({**good, "3.wav": [1] * 40, "4.wav": [], "5.wav": [1] * 51})
    assert "'3.wav': too short: 40 labels, but '3.wav' (16000 samples, train.tsv:5) has 49 frames" in message
    assert "'4.wav': the line is empty" in message and "'5.wav': too long: 51" in message

    message = fail({**good, "3.wav": [9] * 49, "4.wav": [-1] * 49}, size=5)
    assert "'3.wav' has the labels 9 … 9, but units are 0 … 4" in message and "'4.wav' has the labels -1" in message

    assert "20.0 labels per second" in fail({i: [1] * 20 for i in manifest.ids})

    message = fail({i: [9] * 49 for i in manifest.ids}, size=5)
    assert message.count("has the labels") == 20 and "and 10 more" in message
