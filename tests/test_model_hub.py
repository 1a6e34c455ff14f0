"""``load_hubert``: run folders, step folders, fairseq files, cards; and what it says when there is nothing usable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    load_weights,
    make_corpus,
    one_thread,  # noqa: F401 - a fixture
    pretrain_config,
    tiny_config,
    write_config,
)
from fairseq2.checkpoint import ModelMetadataDumper
from fairseq2.runtime.dependency import get_dependency_resolver
from golden import FAIRSEQ, Golden
from processes import command_server

from hubert_plugin import load_hubert, load_hubert_ctc
from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")

    regime = {"num_steps": 9, "checkpoint_every_n_steps": 3, "validate_every_n_steps": 3, "keep_last_n_checkpoints": 3}

    config = write_config(folder / "config.yaml", pretrain_config(make_corpus(folder / "corpus"), regime=regime))

    run = command_server().pretrain(folder / "out", config)

    assert run.poll() == 0, run.raw[-3000:]

    return folder / "out"


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """A run folder to spoil."""
    return shutil.copytree(run_dir, tmp_path / "out")


def assert_has_weights(model: HubertModel, step_dir: Path) -> None:
    weights = load_weights(step_dir)

    state = model.state_dict()

    assert state.keys() == weights.keys()

    for name, value in weights.items():
        assert torch.equal(state[name], value), name


def test_run_folder_gives_its_last_step(run_dir: Path) -> None:
    model = load_hubert(run_dir)

    assert not model.training

    assert_has_weights(model, run_dir / "checkpoints/step_9")

    # The checkpoint explains itself: heads with names and sizes, and everything else that was overridden.
    (head,) = model.config.heads

    assert (head.label_set, head.size, head.rate) == ("km", 8, 50)
    assert (model.config.model_dim, model.config.layer_drop_p) == (32, 0.3)


@pytest.mark.parametrize("source", ["checkpoints", "checkpoints/step_6", "checkpoints/step_6/model", "."])
def test_every_folder_of_a_run_can_be_named(run_dir: Path, source: str) -> None:
    model = load_hubert(str(run_dir / source), step=6)

    assert_has_weights(model, run_dir / "checkpoints/step_6")


def test_best_step_is_the_one_with_the_highest_score(copy: Path) -> None:
    for step, score in ((3, "0.2"), (6, "0.9"), (9, "0.1")):
        (copy / f"checkpoints/scores/step_{step}.txt").write_text(score)

    assert_has_weights(load_hubert(copy, step="best"), copy / "checkpoints/step_6")


def test_loaded_model_gives_features_in_the_dtype_that_was_asked_for(run_dir: Path) -> None:
    waveform = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)

    for dtype in (torch.float32, torch.bfloat16):
        (features,) = load_hubert(run_dir, dtype=dtype).extract_features([waveform], layer=1)

        assert features.dtype == dtype
        assert features.shape == (24, 32)


@pytest.mark.parametrize("case", ["tiny_post", "tiny_pre"])
def test_fairseq_file_gives_fairseqs_features(case: str) -> None:
    """The file as fairseq wrote it; its special label rows are dropped (trap T1), its layers are the golden ones."""
    golden = Golden(case)

    model = load_hubert(FAIRSEQ / f"{case}.pt")

    assert [h.size for h in model.config.heads] == [n - 4 for n in golden.num_classes]

    rows = golden.state_dict["label_embs_concat"]

    assert torch.equal(model.target_heads.heads[0].codewords.detach(), rows[4 : golden.num_classes[0]])

    source, lengths = golden.waveforms("unpadded")

    with torch.no_grad():
        layers = model.encode(source, taps=[1, 2]).layers

    for layer in (1, 2):
        expected = golden.tensor(f"unpadded.layer_{layer}")

        torch.testing.assert_close(layers[layer], expected, atol=2e-5, rtol=1e-4)

    assert min(lengths) == source.size(1)


def test_unknown_name_is_answered_with_a_sentence() -> None:
    with pytest.raises(CheckpointError, match="'no_such_hubert' is neither a folder, nor a file, nor the name"):
        load_hubert("no_such_hubert")


def test_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_hubert(tmp_path)


def test_step_that_is_not_there_is_answered_with_those_that_are(run_dir: Path) -> None:
    for number in (4, "4"):
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 4\. There are: 3, 6, 9"):
            load_hubert(run_dir, step=number)  # type: ignore[arg-type]

    for nonsense in ("first", "-3", 3.0, True):
        with pytest.raises(CheckpointError, match=f"`step` must be 'best', 'last' or the number .* is {nonsense!r}"):
            load_hubert(run_dir, step=nonsense)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", ["6", np.int64(6)])
def test_step_is_a_number_however_it_is_written(run_dir: Path, step: Any) -> None:
    assert_has_weights(load_hubert(run_dir, step=step), run_dir / "checkpoints/step_6")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_checkpoint_cut_off_is_answered_with_a_sentence(copy: Path, share: float) -> None:
    (file,) = (copy / "checkpoints/step_9/model").rglob("*.pt")

    data = file.read_bytes()

    file.write_bytes(data[: int(share * len(data))])

    with pytest.raises(CheckpointError, match="cut off or damaged") as info:
        load_hubert(copy)

    assert str(file) in str(info.value)

    assert_has_weights(load_hubert(copy, step=6), copy / "checkpoints/step_6")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_fairseq_file_cut_off_is_answered_with_a_sentence(tmp_path: Path, share: float) -> None:
    data = (FAIRSEQ / "tiny_post.pt").read_bytes()

    (tmp_path / "cut.pt").write_bytes(data[: int(share * len(data))])

    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        load_hubert(tmp_path / "cut.pt")


def test_file_of_something_else_is_answered_with_what_is_in_it(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")

    with pytest.raises(CheckpointError, match=r"not a HuBERT checkpoint that is known here.*weights"):
        load_hubert(tmp_path / "other.pt")

    torch.save([1, 2], tmp_path / "list.pt")

    with pytest.raises(CheckpointError, match="must hold a dictionary"):
        load_hubert(tmp_path / "list.pt")


def test_file_of_a_stranger_runs_no_code(tmp_path: Path) -> None:
    """DESIGN, decision 5."""

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "was here",)

    torch.save({"model": Evil()}, tmp_path / "evil.pt")

    with pytest.raises(CheckpointError, match="cannot be read safely"):
        load_hubert(tmp_path / "evil.pt")

    assert not (tmp_path / "was here").exists()


def test_missing_or_damaged_description_is_named(copy: Path) -> None:
    description = copy / "checkpoints/model.yaml"

    for text in ("model_family: qwen\nmodel_config: {}\n", "model_family: hubert\nmodel_config: {dim: 3}\n", "[", ""):
        description.write_text(text)

        with pytest.raises(CheckpointError, match=r"model\.yaml"):
            load_hubert(copy)

    description.unlink()

    with pytest.raises(CheckpointError, match=r"model\.yaml' is missing"):
        load_hubert(copy)


def test_parameters_of_another_model_are_named(copy: Path) -> None:
    (file,) = (copy / "checkpoints/step_9/model").rglob("*.pt")

    weights = torch.load(file, weights_only=True)

    weights["masker.temporal_mask_embed"] = torch.zeros(33)
    weights["extra"] = torch.zeros(1)

    del weights["encoder.layers.1.ffn.inner_proj.bias"]

    torch.save(weights, file)

    with pytest.raises(CheckpointError) as info:
        load_hubert(copy)

    for phrase in ("ffn.inner_proj.bias", "unexpected: extra", "expected (32,), found (33,)"):
        assert phrase in str(info.value)


def test_run_folder_of_a_recogniser_gives_it_or_its_encoder(tmp_path: Path) -> None:
    """Written as fairseq2 writes it: the model's description, and the parameters of a step."""
    config = HubertCtcConfig(encoder=tiny_config(heads=[]), vocab_size=5, symbols=["<s>", "a", "b", "c", "d"])

    state = create_hubert_ctc_model(config).state_dict()

    write_run(tmp_path / "out", "hubert_ctc", config, [state])

    model = load_hubert_ctc(tmp_path / "out")

    assert model.config == config and not model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    encoder = load_hubert(tmp_path / "out").state_dict()

    assert all(torch.equal(v, state[f"hubert.{k}"]) for k, v in encoder.items())


def test_shards_of_a_run_are_put_together(tmp_path: Path) -> None:
    """Fully sharded training writes a file per rank; rows are split."""
    config = tiny_config()

    state = create_hubert_model(config).state_dict()

    parts = {k: v.chunk(2) for k, v in state.items()}

    # A parameter of one row is in the first shard only.
    shards = [{k: p[i].clone() for k, p in parts.items() if len(p) > i} for i in range(2)]

    write_run(tmp_path / "out", "hubert", config, shards)

    model = load_hubert(tmp_path / "out")

    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    (tmp_path / "out/checkpoints/step_7/model/pp_00/tp_00/sdp_01.pt").write_bytes(b"PK")

    with pytest.raises(CheckpointError, match=r"shards in .* cut off or damaged"):
        load_hubert(tmp_path / "out")


def write_run(folder: Path, family: str, config: object, shards: list[dict[str, torch.Tensor]]) -> None:
    dumper = get_dependency_resolver().resolve(ModelMetadataDumper)

    dumper.dump(folder / "checkpoints", family, config)

    step = folder / "checkpoints/step_7/model/pp_00/tp_00"

    step.mkdir(parents=True)

    for idx, shard in enumerate(shards):
        torch.save(shard, step / f"sdp_{idx:02d}.pt")


CARD_CODE = """
import hubert_plugin, json
from hubert_plugin import load_hubert
from hubert_plugin.errors import CheckpointError

for name in ("offline_hubert", "local_hubert", "cut_hubert", "lokal_hubert"):
    try:
        print(name, "loaded", load_hubert(name).config.model_dim)
    except CheckpointError as ex:
        print(name, "refused:", ex)
"""


def test_cards_load_and_say_what_is_wrong(tmp_path: Path) -> None:
    """A card of a file here, one of a file out of reach, one of a damaged file, and a name that is nearly one."""
    torch.save({"model": Golden("tiny_post").state_dict}, tmp_path / "hubert.pt")

    (tmp_path / "cut.pt").write_bytes((tmp_path / "hubert.pt").read_bytes()[:5_000])

    info = json.loads((FAIRSEQ / "tiny_post.json").read_text())

    config = Golden("tiny_post").config()

    overrides = {
        "model_dim": config.model_dim,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "ffn_dim": config.ffn_dim,
        "conv_layers": [list(c) for c in config.conv_layers],
        "pos_conv_kernel": config.pos_conv_kernel,
        "pos_conv_groups": config.pos_conv_groups,
        "final_dim": config.final_dim,
        "heads": [{"label_set": "km", "size": info["num_classes_with_specials"][0] - 4}],
    }

    cards = [
        {
            "name": name,
            "model_family": "hubert",
            "model_arch": "base",
            "model_config_overrides": overrides,
            "checkpoint": uri,
        }
        for name, uri in (
            ("offline_hubert", "https://localhost:1/hubert.pt"),
            ("local_hubert", (tmp_path / "hubert.pt").as_uri()),
            ("cut_hubert", (tmp_path / "cut.pt").as_uri()),
        )
    ]

    (tmp_path / "cards").mkdir()
    (tmp_path / "cards/hubert.yaml").write_text("\n---\n".join(json.dumps(c) for c in cards))

    run = command_server().run(
        code=CARD_CODE,
        env={"FAIRSEQ2_USER_ASSET_DIR": str(tmp_path / "cards"), "FAIRSEQ2_CACHE_DIR": str(tmp_path / "cache")},
    )

    assert run.poll() == 0, run.raw[-3000:]

    assert f"local_hubert loaded {config.model_dim}" in run.text
    assert "offline_hubert refused: The checkpoint of the asset card 'offline_hubert' cannot be downloaded" in run.text
    assert "cut_hubert refused: The checkpoint of the asset card 'cut_hubert' cannot be loaded" in run.text
    assert "Did you mean 'local_hubert'" in run.text
