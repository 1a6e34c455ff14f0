"""Features of a layer as a feature source, and written to files by the verb ``features``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import pytest
import torch
from builders import make_corpus, one_thread  # noqa: F401 - a fixture
from golden import FAIRSEQ
from processes import Run, assert_answer, command_server, start_ranks, wait_for_all, wait_until

from hubert_plugin import load_hubert
from hubert_plugin.data.manifest import read_manifest
from hubert_plugin.errors import CheckpointError, ConfigError
from hubert_plugin.models.fingerprint import folder_fingerprint
from hubert_plugin.units.hubert_layer import HubertLayerConfig, HubertLayerSource
from hubert_plugin.units.mfcc import MfccConfig, MfccSource
from hubert_plugin.units.stream import AudioFeatureStream

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = FAIRSEQ / "tiny_post.pt"


STANDING_STILL = """
import sys, time
from pathlib import Path
from hubert_plugin.cli import main
from hubert_plugin.data.feature_files import FeatureWriter

write = FeatureWriter.write

def write_and_stand_still(self, utterance_id, features):
    write(self, utterance_id, features)
    if utterance_id == "{victim}":
        Path(self.data_path.parent / "standing").touch()
        time.sleep(600)

FeatureWriter.write = write_and_stand_still

sys.exit(main({args}))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), num_train=9, num_valid=2, seconds=(0.5, 1.5), label_sets={})


def start(
    out: Path, corpus: Path, *config: str, run: Callable[..., Run] | None = None, preset: str = "layer6", **kwargs: Any
) -> Run:
    if preset == "layer6":
        config = (f"features.config.model={MODEL}", "features.config.layer=2", *config)

    args = ["recipe", "hubert", "features", out, "--preset", preset, "--no-rich", "--config", f"manifest_dir={corpus}"]

    return (run or command_server().run)(*args, *config, **kwargs)


def read_all(source: Any, corpus: Path, split: str) -> list[np.ndarray]:
    return [features for _, features in AudioFeatureStream(read_manifest(corpus, split), source).read()]


def layer_source(**options: Any) -> HubertLayerSource:
    return HubertLayerSource(HubertLayerConfig(model=str(MODEL), layer=2, **options))


def test_features_do_not_depend_on_how_much_audio_is_given_at_once(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = layer_source(max_batch_seconds=8.0)

    # Several batches' worth; a GPU takes more, and large batches are no reason to wait for little audio.
    assert source.chunk_seconds == 240.0
    assert layer_source(max_batch_seconds=400.0).chunk_seconds == 800.0
    assert HubertLayerSource(source._config, torch.device("cuda")).chunk_seconds == 960.0

    at_once = read_all(source, corpus, "train")

    calls = []

    def count(self: HubertLayerSource, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        calls.append(sum(map(len, waveforms)) / 16_000)

        return extract(self, waveforms)

    extract = HubertLayerSource.extract

    monkeypatch.setattr(HubertLayerSource, "extract", count)
    monkeypatch.setattr(HubertLayerSource, "chunk_seconds", 2.0)

    in_parts = read_all(source, corpus, "train")

    assert len(calls) > 2 and max(calls) <= 2.0

    for a, b in zip(at_once, in_parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_layer_features_are_written_for_fairseq_and_mfcc_for_kaldi(corpus: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "a", corpus)

    assert run.wait() == 0, run.raw

    for split in ("train", "valid"):
        expected = read_all(layer_source(), corpus, split)

        array = np.load(tmp_path / f"a/{split}_0_1.npy")

        lengths = [int(line) for line in (tmp_path / f"a/{split}_0_1.len").read_text().split()]

        assert lengths == [len(f) for f in expected]

        np.testing.assert_allclose(array, np.concatenate(expected), atol=1e-5, rtol=1e-5)

    run = start(tmp_path / "b", corpus, "splits=[train]", "num_shards=2", preset="mfcc")

    assert run.wait() == 0, run.raw

    archive = kaldiio.load_scp(str(tmp_path / "b/train/feats.scp"))

    manifest = read_manifest(corpus, "train")

    assert list(archive) == manifest.ids

    for name, expected_features in zip(manifest.ids, read_all(MfccSource(MfccConfig()), corpus, "train"), strict=True):
        np.testing.assert_array_equal(archive[name], expected_features)


def test_features_of_another_making_are_replaced_on_request_alone(corpus: Path, tmp_path: Path) -> None:
    def dump(out: Path, *config: str, expected: int = 0) -> str:
        run = start(out, corpus, "splits=[valid]", *config, preset="mfcc")

        assert run.wait() == expected, run.raw

        return run.text

    for form, name in (("kaldi", "valid/feats.ark"), ("fairseq", "valid_0_1.npy")):
        out, file = tmp_path / form, tmp_path / form / name

        dump(out, f"format={form}")

        before = file.read_bytes()

        dump(out, f"format={form}")  # the same

        message = dump(out, f"format={form}", "features.config.rate=50", expected=2)

        assert f"{name}: it was made with other features, by its record '" in message
        assert "Choose another output folder, or set `overwrite=true`" in message and file.read_bytes() == before

        file.with_suffix(".json").unlink()

        assert f"{name}: there is no record '" in dump(out, f"format={form}", expected=2)
        assert file.read_bytes() == before

        # Kaldi's shards are joined by a script file of the same name.
        if form == "kaldi":
            assert f"{name}: there is no record" in dump(out, f"format={form}", "num_shards=2", expected=2)

        # What a process that was killed between two renames leaves.
        file.with_name(f".{file.with_suffix('.json').name}.abcd1234.tmp").touch()

        dump(out, f"format={form}")

        assert file.read_bytes() == before and file.with_suffix(".json").exists()

        dump(out, f"format={form}", "features.config.rate=50", "overwrite=true")

        assert file.read_bytes() != before


def test_killed_run_goes_on_from_its_last_shard(corpus: Path, tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", corpus, "splits=[train]", "num_shards=3")

    assert whole.wait() == 0, whole.raw

    # A run that stands still in the second shard, for sure, and is then killed.
    victim = read_manifest(corpus, "train").ids[4]

    out = tmp_path / "out"

    args = ["recipe", "hubert", "features", str(out), "--preset", "layer6", "--no-rich", "--config"]

    config = [f"manifest_dir={corpus}", f"features.config.model={MODEL}", "features.config.layer=2"]

    run = command_server().start(
        code=STANDING_STILL.format(victim=victim, args=[*args, *config, "splits=[train]", "num_shards=3"])
    )

    first, second = (out / f"train_{i}_3.json" for i in (0, 1))

    wait_until(lambda: (out / "standing").exists(), run=run)

    run.kill()

    assert first.exists() and not second.exists() and not second.with_suffix(".npy").exists()

    assert list(out.glob(".train_1_3*.tmp"))

    stamp = first.with_suffix(".npy").stat().st_mtime_ns

    again = start(out, corpus, "splits=[train]", "num_shards=3")

    assert again.wait() == 0, again.raw

    assert first.with_suffix(".npy").stat().st_mtime_ns == stamp  # kept, not made again

    for name in (f"train_{i}_3.{end}" for i in range(3) for end in ("npy", "len")):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    assert not [p for p in (tmp_path / "out").iterdir() if p.name.endswith(".tmp")]


def test_other_features_are_not_taken_for_finished(corpus: Path, tmp_path: Path) -> None:
    """A shard counts as done only if it was made from the same features of the same manifest."""
    for layer in (1, 2):
        run = start(tmp_path / "out", corpus, "splits=[valid]", f"features.config.layer={layer}", "overwrite=true")

        assert run.wait() == 0, run.raw

    expected = np.concatenate(read_all(layer_source(), corpus, "valid"))

    np.testing.assert_allclose(np.load(tmp_path / "out/valid_0_1.npy"), expected, atol=1e-5, rtol=1e-5)


def test_single_shards_of_a_job_array_add_up(corpus: Path, tmp_path: Path) -> None:
    for shard in (1, 0):
        run = start(tmp_path, corpus, "splits=[valid]", "num_shards=2", f"shard={shard}", preset="mfcc")

        assert run.wait() == 0, run.raw

        assert (tmp_path / "valid/feats.scp").exists() == (shard == 0)

    assert list(kaldiio.load_scp(str(tmp_path / "valid/feats.scp"))) == read_manifest(corpus, "valid").ids


def test_splits_with_fewer_utterances_than_processes_have_a_shard_for_each(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_train=3, num_valid=1, seconds=(0.5, 0.6), label_sets={})

    args = ["recipe", "hubert", "features", tmp_path / "out", "--no-rich", "--config", f"manifest_dir={corpus}"]

    wait_for_all(start_ranks([*args, "format=fairseq"], 2))

    assert {p.name for p in (tmp_path / "out").glob("*.npy")} == {"train_0_2.npy", "train_1_2.npy", "valid_0_1.npy"}


def test_a_split_too_small_for_the_shards_is_told_before_any_is_written(corpus: Path, tmp_path: Path) -> None:
    run = start(tmp_path, corpus, "num_shards=5", preset="mfcc")

    assert_answer(run, ["of each split, but is 5 instead", "valid.tsv' has 2 of them"])

    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["features.config.layer=4"], "`layer` must be between 0 and 3, but is 4 instead: the model has 3 layers"),
        (["features.config.model=no_such"], "'no_such' is neither a folder, nor a file, nor the name of an asset card"),
        (["features.config.dtype=int8"], "'features.config.dtype' cannot be used"),
        (
            ["features.config.device=tpu9"],
            "must be a device of this machine, such as 'cpu' or 'cuda:0', but is 'tpu9'",
        ),
        (["format=csv"], "`format` must be kaldi or fairseq, but is 'csv'"),
        (["shard=2", "num_shards=2"], "`shard` must be at least 0 and below `num_shards`"),
        (["num_shards=99"], "`num_shards` must be between 1 and the number of utterances"),
    ],
)
def test_wrong_options_of_features_are_answered_with_a_sentence(
    options: list[str], message: str, corpus: Path, tmp_path: Path
) -> None:
    run = start(tmp_path, corpus, "splits=[valid]", *options)

    assert run.wait() == 2, run.raw

    assert message in run.text, run.raw

    assert "Traceback" not in run.text


def test_wrong_sample_rate_is_refused_by_name_where_asked(corpus: Path, tmp_path: Path) -> None:
    import soundfile as sf

    shutil.copytree(corpus, tmp_path / "corpus")

    manifest = read_manifest(tmp_path / "corpus", "valid")

    path = tmp_path / "corpus/wav" / manifest.ids[1]

    sf.write(path, np.zeros(int(manifest.sizes[1]) // 2, np.float32), 8_000)

    run = start(tmp_path / "out", tmp_path / "corpus", "splits=[valid]", "audio.sample_rate=refuse")

    assert run.wait() == 2, run.raw

    assert "valid01.wav" in run.text and "8000 Hz" in run.text.replace(",", "")

    assert not list((tmp_path / "out").glob("valid_*"))


def test_precision_and_limits_do_not_change_what_the_source_gives() -> None:
    waveforms = [(0.1 * np.random.default_rng(n).standard_normal(n)).astype(np.float32) for n in (399, 32_000, 8_000)]

    expected = layer_source().extract(waveforms)

    assert [f.shape for f in expected] == [(0, 32), (99, 32), (24, 32)]

    for options, tolerance in (
        ({"max_chunk_seconds": 1.0}, 2e-5),
        ({"max_batch_seconds": 1.0}, 2e-5),
        ({"dtype": "bf16"}, 0.2),
        ({"dtype": "fp16"}, 0.02),
    ):
        features = layer_source(**options).extract(waveforms)

        for a, b in zip(features, expected, strict=True):
            assert a.dtype == np.float32

            np.testing.assert_allclose(a, b, atol=tolerance)


def test_provenance_tells_checkpoints_apart_and_nothing_else(tmp_path: Path) -> None:
    description = layer_source().describe()

    assert description["model"] == "tiny_post.pt"

    assert layer_source(device="cpu", max_batch_seconds=5.0).describe() == description
    assert layer_source(dtype="bf16").describe() != description
    assert layer_source(attention_seconds=5.0).describe() != description

    # Folders, too: by what they hold, not by where they are.
    fingerprints = []

    for name, content in (("a/model", b"1"), ("b/model", b"1"), ("c/model", b"2")):
        folder = tmp_path / name
        folder.mkdir(parents=True)

        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(content)
        (folder / "README.md").write_text(name)

        source = HubertLayerSource(HubertLayerConfig(model=str(folder), layer=1))

        fingerprints.append(source.describe()["model_fingerprint"])

        assert source.describe()["model"] == "model"

    assert fingerprints[0] == fingerprints[1] != fingerprints[2]

    (tmp_path / "empty").mkdir()

    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        folder_fingerprint(tmp_path / "empty")


def test_fingerprint_of_a_run_is_that_of_its_last_checkpoint(tmp_path: Path) -> None:
    for step, content in ((1, b"1"), (2, b"2")):
        folder = tmp_path / f"run/checkpoints/step_{step}/model/pp_00/tp_00"
        folder.mkdir(parents=True)

        (folder / "sdp_00.pt").write_bytes(content)

    (tmp_path / "run/checkpoints/model.yaml").write_text("x: 1")

    run = folder_fingerprint(tmp_path / "run")

    assert run == folder_fingerprint(tmp_path / "run/checkpoints/step_2")
    assert run != folder_fingerprint(tmp_path / "run/checkpoints/step_1")

    (tmp_path / "run/config.yaml").write_text("learning rates and the like do not count")

    assert folder_fingerprint(tmp_path / "run") == run


def test_layer_beyond_the_last_names_model_and_range() -> None:
    source = HubertLayerSource(HubertLayerConfig(model=str(MODEL), layer=7))

    with pytest.raises(ConfigError, match=r"tiny_post\.pt.*between 0 and 3, but is 7"):
        source.extract([np.zeros(400, np.float32)])


def test_source_loads_in_the_precision_and_on_the_device_it_was_told() -> None:
    source = layer_source(dtype="bf16", device="cpu")

    source.extract([np.zeros(400, np.float32)])

    assert source._model.masker.temporal_mask_embed.dtype == torch.bfloat16

    assert load_hubert(MODEL).masker.temporal_mask_embed.dtype == torch.float32
