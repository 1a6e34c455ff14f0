"""What the command answers without torch: help, lists, names, presets, discovery."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from hubert_plugin.arguments import parse_verb_args

MakeDistribution = Callable[[Path, str, Mapping[str, str], Mapping[str, str]], Path]

HEAVY = {"torch", "numpy", "fairseq2", "fairseq2n", "importlib_metadata", "pkg_resources", "ruamel", "rich", "pip"}


def run(
    *args: str, path: Path | None = None, options: Sequence[str] = (), cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ)

    if path is not None:
        env["PYTHONPATH"] = str(path)

    command = [sys.executable, *options, "-m", "hubert_plugin", *args]

    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


ECHO = "import sys\nprint('ran', *sys.argv)\n"

FILES = {
    # Listing must not import the parents of a recipe package: they may import torch.
    "other_pkg/__init__.py": "raise RuntimeError('listing imported other_pkg')\n",
    "other_pkg/recipes/__init__.py": '"""Recipes of another package.\n\nMore about them.\n"""\n',
    "other_pkg/recipes/speak/__init__.py": '"""Say something."""\n',
    "other_pkg/recipes/speak/__main__.py": ECHO,
    "other_pkg/recipes/speak/configs/loud.yaml": "\n# Say it loudly.\n# Really.\nvolume: 11\n",
    "other_pkg/recipes/speak/configs/quiet.yaml": "volume: 1\n",
    "other_pkg/recipes/helpers/__init__.py": '"""No verb: it has no __main__."""\n',
    "plain_pkg/__init__.py": "",
    "plain_pkg/extra/__init__.py": '"""One more verb of a group of others."""\n',
    "plain_pkg/extra/__main__.py": ECHO,
    "plain_pkg/single.py": f'"""A verb that is one module."""\n{ECHO}',
}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, make_distribution: MakeDistribution) -> Path:
    points = {
        "other": "other_pkg.recipes",
        "hubert.extra": "plain_pkg.extra",
        "hubert.single": "plain_pkg.single",
        "gone": "no_such_pkg.recipes",
    }

    return make_distribution(tmp_path_factory.mktemp("others"), "others", points, FILES)


@pytest.mark.parametrize(
    "args", [(), ("--help",), ("--version",), ("recipe", "list"), ("recipe", "hubert", "list"), ("recipe", "hubert")]
)
def test_help_and_lists_import_nothing_heavy(args: tuple[str, ...]) -> None:
    start = time.perf_counter()

    result = run(*args, options=["-X", "importtime"])

    print(f"{' '.join(args)}: {time.perf_counter() - start:.2f} s with import tracing")

    assert result.returncode == 0, result.stderr

    imported = {m.split(".")[0] for m in re.findall(r"\|\s+([\w.]+)$", result.stderr, re.MULTILINE)}

    assert "hubert_plugin" in imported
    assert not imported & HEAVY


def test_every_verb_tells_its_arguments_and_presets_without_torch(repo_dir: Path) -> None:
    verbs = sorted(p.parent.name for p in (repo_dir / "recipes" / "hubert").glob("*/__main__.py"))

    listing = run("recipe", "hubert", "list")

    for verb in verbs:
        result = run("recipe", "hubert", verb, "--help", options=["-X", "importtime"])

        assert result.returncode == 0
        assert "OUTPUT_DIR" in result.stdout and "--preset" in result.stdout
        assert not re.search(r"\|\s+(torch|numpy|fairseq2)$", result.stderr, re.MULTILINE)

        description = re.search(rf"^  {verb} +(\S.*)$", listing.stdout, re.MULTILINE)

        assert description is not None, f"{verb} is not listed, or its __init__.py has no docstring"
        assert description[1] in result.stdout.replace("\n", " ")

        for preset in (repo_dir / "recipes" / "hubert" / verb / "configs").glob("*.yaml"):
            assert re.search(rf"^  {preset.stem} +\S", result.stdout, re.MULTILINE), f"{preset} has no first comment"


def test_every_verb_goes_through_our_runner(repo_dir: Path) -> None:
    # fairseq2's own `main` answers a wrong configuration with a stack trace and knows no presets.
    for path in (repo_dir / "recipes").glob("*/*/__main__.py"):
        # `iterate`, which starts others, is no recipe of fairseq2's.
        runner = "run_command" if path.with_name("command.py").exists() else "run_recipe"

        assert f"{runner}(__package__, " in path.read_text(), f"{path} does not call {runner}"


def test_version_names_the_distributions() -> None:
    assert re.match(r"fairseq2-hubert \S+ \(fairseq2 0\.8\.\d+, PyTorch \S+, Python 3\.\d+\.\d+\)", run("-V").stdout)


def test_console_script_is_the_same_command() -> None:
    script = Path(sys.executable).parent / "fairseq2"

    if not script.exists():
        pytest.skip("hubert_plugin is not installed in this environment")

    result = subprocess.run([script, "recipe", "list"], capture_output=True, text=True, check=True)

    assert result.stdout == run("recipe", "list").stdout


def test_recipes_of_other_distributions_are_found(others: Path) -> None:
    result = run("recipe", "list", path=others)

    assert result.returncode == 0, result.stderr
    assert "other: Recipes of another package.\n  speak  Say something.\n" in result.stdout
    assert re.search(r"^  extra +One more verb of a group of others\.$", result.stdout, re.MULTILINE)
    assert re.search(r"^  single +A verb that is one module\.$", result.stdout, re.MULTILINE)
    assert "helpers" not in result.stdout
    assert "no package 'no_such_pkg.recipes'" in result.stderr


def test_group_list_shows_presets(others: Path) -> None:
    assert "presets: loud, quiet" in run("recipe", "other", "list", path=others).stdout


def test_verb_help_shows_presets_with_their_first_comment(others: Path) -> None:
    result = run("recipe", "other", "speak", "--help", path=others)

    assert result.returncode == 0
    assert "usage: fairseq2 recipe other speak" in result.stdout
    assert "Say something." in result.stdout
    assert re.search(r"^  loud +Say it loudly\.$", result.stdout, re.MULTILINE)
    assert re.search(r"^  quiet$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("verb", ["extra", "single"])
def test_verb_of_another_distribution_runs(others: Path, verb: str) -> None:
    result = run("recipe", "hubert", verb, "out", "--config", "a=1", "b.c=x y", "--no-rich", path=others)

    assert result.returncode == 0, result.stderr
    assert result.stdout == f"ran fairseq2 recipe hubert {verb} out --config a=1 b.c=x y --no-rich\n"


def test_preset_becomes_the_configuration_file(others: Path) -> None:
    (others / "other_pkg" / "__init__.py").write_text("")

    try:
        result = run("recipe", "other", "speak", "--config", "a=1", "--preset", "loud", "--new-option", path=others)
    finally:
        (others / "other_pkg" / "__init__.py").write_text(FILES["other_pkg/__init__.py"])

    preset = others / "other_pkg/recipes/speak/configs/loud.yaml"

    # An option that we do not know is fairseq2's to judge.
    assert result.stdout == f"ran fairseq2 recipe other speak --config-file {preset} --config a=1 --new-option\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["recipes"], "'recipes' is not a known command. Did you mean 'recipe'?"),
        (["recipe", "othr"], "'othr' is not a known recipe group. Did you mean 'other'? Known: hubert, other."),
        (["recipe", "other", "speek", "out"], "'speek' is not a known recipe of 'other'. Did you mean 'speak'?"),
        (["recipe", "other", "speak", "o", "--preset", "lod"], "'lod' is not a known preset. Did you mean 'loud'?"),
        (["recipe", "other", "speak", "o", "--preset", "lod"], "Known: loud, quiet."),
        (["recipe", "other", "speak", "o", "--preset", "loud", "--config-file", "f"], "exclude each other"),
        (["recipe", "other", "speak", "o", "--preset", "loud", "--preset", "quiet"], "given 2 times (loud, quiet)"),
        (["recipe", "other", "speak"], "OUTPUT_DIR is missing"),
        (["recipe", "other", "speak", "--config", "a=1", "out"], "Put OUTPUT_DIR before --config"),
        (
            ["recipe", "other", "speak", "o", "--confg", "a=1"],
            "'--confg' is not a known option. Did you mean '--config",
        ),
        (
            ["recipe", "other", "speak", "o", "a.b=1", "c=2"],
            "'a.b=1' is read as configuration only after --config",
        ),
        (["recipe", "hubert", "iterate", "o", "--presett=x"], "Did you mean '--preset'?"),
        (["recipe", "hubert", "iterate", "o", "x"], "unrecognized arguments: x"),
        (["recipe", "other", "speak", "o", "--config", "d.x_dir="], "'d.x_dir=' after --config names no folder"),
        (["recipe", "other", "speak", "o", "--config", "d.x_dir= "], "leave it out or write `d.x_dir=null`"),
    ],
)
def test_unknown_names_are_answered_with_a_sentence(others: Path, args: list[str], sentence: str) -> None:
    result = run(*args, path=others)

    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_options_of_folders_may_be_removed_or_null() -> None:
    argv = ["out", "--config", "del:dataset.manifest_dir", "dataset.label_dir=null", "text="]

    assert parse_verb_args("x", argv, "", {}).config_overrides == [argv[2:]]


def test_assets_alone_tells_its_commands() -> None:
    assert "fairseq2 assets list" in run("assets").stdout


def test_closed_pipe_ends_quietly() -> None:
    # The reader is gone before the first line is written.
    code = "import sys, time; time.sleep(0.3); from hubert_plugin.cli import main; sys.exit(main(['recipe', 'list']))"

    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert process.stdout is not None and process.stderr is not None

    process.stdout.close()

    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE

    process.stderr.close()


def test_interruption_ends_quietly(tmp_path: Path, make_distribution: MakeDistribution) -> None:
    files = {"slow_pkg/__init__.py": "", "slow_pkg/wait.py": "import time\nprint('up', flush=True)\ntime.sleep(60)\n"}

    path = make_distribution(tmp_path, "slow", {"slow.wait": "slow_pkg.wait"}, files)

    process = subprocess.Popen(
        [sys.executable, "-m", "hubert_plugin", "recipe", "slow", "wait", "out"],
        env={**os.environ, "PYTHONPATH": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    assert process.stdout is not None and process.stdout.readline() == "up\n"

    process.send_signal(signal.SIGINT)

    _, stderr = process.communicate(timeout=60)

    assert stderr == ""
    assert process.returncode == -signal.SIGINT
