"""Asset cards of a user's own that cannot be used: a sentence that names card or file, and exit code 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import pretrain_config, write_config
from processes import Run, assert_answer, command_server

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
