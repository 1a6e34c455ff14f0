"""What a changed option, other audio or other code makes a refinement do again, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from refined import made_refinement, original_refinement, set_clusters  # noqa: F401 - fixtures
from refinement import STEPS, Refinement, line_of, write_manifests


def test_a_changed_option_redoes_its_step_and_what_reads_another_result(made: Refinement) -> None:
    set_clusters(made, 1, 60)

    text = made.run()

    # Round 1 measures its layers at the size of round 2, too.
    assert made.done() == ["round1/analyze", *STEPS[4:]]

    assert line_of(text, "round2/cluster").startswith("round2 / cluster: again, because ")
    assert "units.config.num_clusters changed from 50 to 60" in line_of(text, "round2/cluster")
    assert "num_clusters changed from [50, 100] to [60, 100]" in line_of(text, "round1/analyze")
    assert "the unit model changed" in line_of(text, "round2/label")
    assert "the labels changed" in line_of(text, "round2/pretrain")
    assert line_of(text, "round1/pretrain") == "round1 / pretrain: done"


def test_the_second_round_of_runs_with_another_configuration_equals_one_made_at_once(
    made: Refinement, tmp_path: Path
) -> None:
    set_clusters(made, 0, 30)
    made.run()

    (tmp_path / "fresh").mkdir()

    fresh = Refinement(tmp_path / "fresh", made.config)
    fresh.run()

    assert fresh.numbers() == made.numbers()


def test_features_in_files_that_were_replaced_redo_what_read_them(made: Refinement, tmp_path: Path) -> None:
    """Others' by their sizes and times of change, ours by the record beside them; the place does not count."""
    features, raw = tmp_path / "features", tmp_path / "raw.ark"

    (features / "train").mkdir(parents=True)
    (features / "train" / "feats.ark").write_text("ours")
    (features / "train" / "feats.json").write_text('{"features": "mfcc"}')
    (features / "feats.scp").write_text(f"utt {raw}:4\n")
    raw.write_text("of another tool")

    def run() -> str:
        made.config["rounds"][0]["features"] = {"name": "kaldi", "config": {"path": str(features)}}

        return line_of(made.run(), "round1/cluster")

    assert "features.name" in run()
    assert run() == "round1 / cluster: done"

    # The same record: the same features.
    (features / "train" / "feats.ark").write_text("written again")

    assert run() == "round1 / cluster: done"

    (features / "train" / "feats.json").write_text('{"features": "others"}')

    assert "the features in files changed" in run()

    raw.write_text("replaced")

    assert "the features in files changed" in run()

    features = features.rename(tmp_path / "moved")

    assert run() == "round1 / cluster: done"


def test_steps_that_depend_on_an_equal_result_stay(made: Refinement) -> None:
    made.config["rounds"][0]["cluster"] = {"export_joblib": True}

    text = made.run()

    assert made.done() == ["round1/cluster", "report"]
    assert "export_joblib is true now, and was not given" in line_of(text, "round1/cluster")


def test_options_that_only_say_how_are_no_reason(made: Refinement) -> None:
    made.config["options"] |= {
        "pretrain": {
            **made.config["options"]["pretrain"],
            "common": {"seed": 2},
            "task": {"config": {"num_workers": 4, "batching": {"batch_seconds": 20}}},
            "regime": {"num_steps": 4, "keep_last_n_checkpoints": 3},
        },
        "analyze": {"plots": False},
        "label": {"num_workers": 3},
    }

    made.run()

    assert made.done() == []


def test_a_training_that_is_replaced_is_kept_beside_unless_it_is_not_wanted(made: Refinement) -> None:
    weights = (made.out / "round2/pretrain/checkpoints/step_4/model/pp_00/weights.pt").read_text()

    made.config["options"]["pretrain"]["optimizer"] = {"config": {"lr": 0.1}}

    text = made.run()

    assert "optimizer.config.lr is 0.1 now, and was not given" in text

    kept = made.out / "replaced/round2-pretrain-1"

    assert (kept / "checkpoints/step_4/model/pp_00/weights.pt").read_text() == weights
    assert "what was there is in replaced/round2-pretrain-1" in text

    made.config["options"]["pretrain"]["optimizer"] = {"config": {"lr": 0.2}}
    made.config["keep_replaced"] = False

    made.run()

    assert sorted(p.name for p in (made.out / "replaced").iterdir()) == ["round1-pretrain-1", "round2-pretrain-1"]


def test_only_the_last_model_of_a_round_stays_if_that_is_asked_for(made: Refinement) -> None:
    made.config["rounds"][0]["keep"] = "model"

    made.run()

    assert made.done() == []

    checkpoints = made.out / "round1/pretrain/checkpoints"

    assert sorted(str(p.relative_to(checkpoints)) for p in checkpoints.rglob("*") if p.is_file()) == [
        "model.yaml",
        "step_4/model/pp_00/weights.pt",
    ]
    assert (made.out / "round2/pretrain/checkpoints/step_4/trainer").is_dir()

    made.run()

    assert made.done() == []


def test_other_audio_redoes_what_reads_it(made: Refinement) -> None:
    write_manifests(made.folder / "data", names=["a.wav", "c.wav"])

    text = made.run()

    assert made.done() == STEPS
    assert "the training manifest changed" in line_of(text, "round1/cluster")


def test_moved_audio_and_manifests_are_no_reason(made: Refinement) -> None:
    write_manifests(made.folder / "elsewhere", root="/mnt/audio")

    made.config["dataset"]["manifest_dir"] = str(made.folder / "elsewhere")

    made.run()

    assert made.done() == []


def test_other_code_is_said_and_no_reason_unless_it_is_asked_for(
    made: Refinement, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hubert_plugin

    monkeypatch.setattr(hubert_plugin, "__version__", "99.0")

    text = made.run()

    assert made.done() == []
    assert line_of(text, "round1/cluster").startswith("round1 / cluster: done (made with fairseq2-hubert ")
    assert "`on_code_change=redo` makes it again" in text

    made.config["on_code_change"] = "redo"

    text = made.run()

    assert made.done() == STEPS
    assert "again, because the code changed: fairseq2-hubert was" in line_of(text, "round1/pretrain")


def test_options_that_pretrain_lets_change_are_no_reason_to_train_again() -> None:
    from hubert_plugin.refinement.steps import is_how
    from hubert_plugin.tasks.output_dir import _MAY_CHANGE

    for key in _MAY_CHANGE:
        assert is_how("pretrain", key), key

    assert not is_how("pretrain", "regime.num_steps")
