"""Asset cards of a user's own that cannot be used: a sentence that names card or file, and exit code 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import pretrain_config, write_config
from fairseq2.assets import AssetCard, AssetCardError
from fairseq2.data.tokenizers import TokenizerFamily
from fairseq2.models.family import ModelFamily
from fairseq2.runtime.dependency import get_dependency_resolver
from processes import Run, assert_answer, command_server

from hubert_plugin.card_errors import maybe_describe_card_error

BROKEN = "name: x\n  model_family: hubert\n"

FOLDERS = {
    "broken": ({"a.yaml": BROKEN}, ["/cards/a.yaml', line 2, column 15, is not valid YAML: mapping values"]),
    "one name twice": (
        {"a.yaml": "name: dup\nmodel_family: hubert\n", "b.yaml": 'name: x\n---\nname: "dup"  # again\n'},
        ["Two asset cards have the name 'dup', in", "/cards/a.yaml' and", "/cards/b.yaml'. Give one of them another"],
    ),
    "a name of ours": (
        {"a.yaml": "name: hubert_base_ls960\n"},
        ["Two asset cards have the name 'hubert_base_ls960'", "'hubert_plugin.assets.cards'", "/cards/a.yaml'"],
    ),
    "no name": ({"a.yaml": "model_family: hubert\n"}, ["/cards/a.yaml does not have a name"]),
}

LOAD = """
from hubert_plugin import load_hubert, load_units
from hubert_plugin.errors import CheckpointError, UnitModelError

for load, kls in ((load_hubert, CheckpointError), (load_units, UnitModelError)):
    try:
        load("dup")
    except kls as ex:
        print(ex)
"""


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    (tmp_path / "cards").mkdir()

    return tmp_path / "cards"


def recipe(cards: Path, verb: str, *overrides: str) -> Run:
    """Run a recipe, with the folder ``cards`` as the user's."""
    args = ["recipe", "hubert", verb, cards.parent / "out", "--no-rich", "--config", *overrides]

    return command_server().run(*args, env={"FAIRSEQ2_USER_ASSET_DIR": str(cards)})


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_of_cards_that_cannot_be_read_is_answered(cards: Path, name: str) -> None:
    files, phrases = FOLDERS[name]

    for file, text in files.items():
        (cards / file).write_text(text)

    env = {"FAIRSEQ2_USER_ASSET_DIR": str(cards)}

    run = command_server().run(code=LOAD, env=env)

    assert run.poll() == 0, run.raw[-3000:]

    for phrase in phrases:
        assert run.text.count(phrase) == 2, run.raw[-3000:]

    # Wide enough that the lines of fairseq2's own log are not wrapped within a path.
    assert_answer(command_server().run("assets", "list", env={**env, "COLUMNS": "500"}), phrases)


@pytest.mark.parametrize(
    ("verb", "overrides"),
    [
        ("cluster", ["manifest_dir=.", "features.name=kaldi", "features.config={dataset: mine}"]),
        ("transcribe", ["model=nothing", "input=."]),
        ("export", ["model=nothing"]),
    ],
)
def test_every_recipe_answers_it(cards: Path, verb: str, overrides: Sequence[str]) -> None:
    files, phrases = FOLDERS["broken"]

    (cards / "a.yaml").write_text(files["a.yaml"])

    assert_answer(recipe(cards, verb, *overrides), phrases)


def test_training_answers_it_although_it_names_no_card(cards: Path) -> None:
    files, phrases = FOLDERS["broken"]

    (cards / "a.yaml").write_text(files["a.yaml"])

    config = write_config(cards.parent / "config.yaml", pretrain_config(cards.parent / "corpus"))

    server, out = command_server(), cards.parent / "out"

    assert_answer(server.pretrain(out, config, env={"FAIRSEQ2_USER_ASSET_DIR": str(cards)}), phrases)
    assert_answer(server.pretrain(out, config, f"common.assets.extra_paths=[{cards}]"), phrases)


CARD = "name: mine\ndataset_family: hubert\ndataset_config: "

FIELDS = {
    "unknown key": (
        "pretrain",
        CARD + "{manifest_dr: /data}",
        ["dataset.name=mine"],
        "for its `dataset_config`: 'manifest_dr' is not a known key. Did you mean 'manifest_dir'",
    ),
    "number": ("pretrain", CARD + "3", ["dataset.name=mine"], "for its `dataset_config`: must hold keys and values"),
    "text for a list": (
        "pretrain",
        CARD + "{labels: km}",
        ["dataset.name=mine"],
        "`dataset_config.labels` must be a list, such as [km], but is the text 'km'",
    ),
    "features": (
        "cluster",
        CARD + "{feature_file: /data}",
        ["manifest_dir=.", "features.name=kaldi", "features.config={dataset: mine}"],
        "'feature_file' is not a known key. Did you mean 'feature_files'",
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_field_of_a_card_is_named(cards: Path, name: str) -> None:
    verb, text, overrides, phrase = FIELDS[name]

    (cards / "a.yaml").write_text(text)

    assert_answer(recipe(cards, verb, *overrides), ["The asset card 'mine' cannot be used", phrase])


@pytest.mark.parametrize(
    ("family", "key", "config", "phrase"),
    [
        ("model", "model_config_overrides", {"normalise_audio": True}, "Did you mean 'normalize_audio'"),
        (
            "model",
            "model_arch",
            "huge",
            "cannot be used: `model_arch` is expected to be a supported model architecture",
        ),
        ("tokenizer", "tokenizer_config", {"symbol": ["a"]}, "Did you mean 'symbols'"),
        ("tokenizer", "tokenizer_config", 4, "for its `tokenizer_config`: must hold keys and values"),
        (
            "tokenizer",
            "tokenizer_config",
            {"symbols": ["|", 1]},
            "for its `tokenizer_config`: 'symbols[1]' cannot be used",
        ),
    ],
)
def test_wrong_field_of_a_model_or_tokenizer_is_named(family: str, key: str, config: object, phrase: str) -> None:
    resolver = get_dependency_resolver()

    card = AssetCard("mine", {key: config})

    with pytest.raises(AssetCardError) as info:
        if family == "model":
            resolver.resolve(ModelFamily, key="hubert").get_model_config(card)
        else:
            resolver.resolve(TokenizerFamily, key="hubert_letters").get_tokenizer_config(card)

    sentence = maybe_describe_card_error(info.value)

    assert sentence is not None and sentence.startswith("The asset card 'mine' cannot be used") and phrase in sentence
