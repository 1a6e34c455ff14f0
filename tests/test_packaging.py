"""What lands in the wheel, and that it works where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOTS = {"hubert_plugin": "hubert_plugin", "recipes": "hubert_plugin/recipes", "assets": "hubert_plugin/assets"}
"""Where the folders of the checkout are in the wheel."""


def iter_source_files(repo_dir: Path) -> Iterator[str]:
    """Yield the names that the wheel must hold."""
    for folder, target in ROOTS.items():
        for path in (repo_dir / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".c", ".h") or path.name == "py.typed":
                yield f"{target}/{path.relative_to(repo_dir / folder).as_posix()}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repo_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("wheel")

    # A copy: setuptools writes into the folder it builds, and a `build/` left there would get into the wheel.
    source = folder / "source"
    source.mkdir()

    for name in (*ROOTS, "pyproject.toml", "README.md", "LICENSE"):
        if (repo_dir / name).is_dir():
            shutil.copytree(repo_dir / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(repo_dir / name, source / name)

    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]

    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)

    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")

    # What `pip install --no-deps --target` does with a pure wheel, in environments without pip too.
    with ZipFile(wheel) as archive:
        archive.extractall(folder)

    return folder


def run_installed(installed: Path, *args: str) -> subprocess.CompletedProcess[str]:
    # From a folder that is not the checkout; what PYTHONPATH names comes before an editable installation.
    return subprocess.run(
        [sys.executable, *args],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_wheel_holds_every_module_preset_and_card(wheel: Path, repo_dir: Path) -> None:
    names = set(ZipFile(wheel).namelist())

    assert not set(iter_source_files(repo_dir)) - names


def test_wheel_holds_nothing_else(wheel: Path, repo_dir: Path) -> None:
    names = {n for n in ZipFile(wheel).namelist() if ".dist-info/" not in n}

    assert not names - set(iter_source_files(repo_dir))


def test_every_folder_with_modules_is_a_package(repo_dir: Path) -> None:
    for folder in ROOTS:
        for path in (repo_dir / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"


def test_wheel_declares_command_extension_recipes_and_licence(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        info = next(n for n in archive.namelist() if n.endswith("METADATA")).rpartition("/")[0]

        metadata = archive.read(f"{info}/METADATA").decode()
        points = archive.read(f"{info}/entry_points.txt").decode()

        assert f"{info}/licenses/LICENSE" in archive.namelist()

    assert "License-Expression: MIT" in metadata
    assert "fairseq2 = hubert_plugin.cli:main" in points
    assert "hubert = hubert_plugin:setup_fairseq2_extension" in points
    assert "hubert = hubert_plugin.recipes.hubert" in points


def test_installed_wheel_finds_cards_presets_and_recipes(installed: Path, repo_dir: Path) -> None:
    code = """
import importlib.resources as r, hubert_plugin, hubert_plugin.recipes.hubert
print(hubert_plugin.__file__)
def walk(t, p=""):
    for c in t.iterdir():
        if c.is_dir():
            walk(c, f"{p}{c.name}/")
        elif c.name.endswith(".yaml"):
            print(f"{p}{c.name}")
walk(r.files("hubert_plugin.assets.cards"), "cards/")
walk(r.files("hubert_plugin.recipes"), "recipes/")
"""
    result = run_installed(installed, "-c", code)

    assert result.returncode == 0, result.stderr

    found = result.stdout.splitlines()

    assert Path(found[0]).is_relative_to(installed)

    expected = {f"cards/{p.relative_to(repo_dir / 'assets/cards')}" for p in (repo_dir / "assets").rglob("*.yaml")}
    expected |= {f"recipes/{p.relative_to(repo_dir / 'recipes')}" for p in (repo_dir / "recipes").rglob("*.yaml")}

    assert set(found[1:]) == expected


def test_installed_wheel_lists_its_recipes(installed: Path, repo_dir: Path) -> None:
    result = run_installed(installed, "-m", "hubert_plugin", "recipe", "hubert", "list")

    assert result.returncode == 0, result.stderr

    for path in (repo_dir / "recipes" / "hubert").glob("*/__main__.py"):
        assert re.search(rf"^  {path.parent.name}\b", result.stdout, re.MULTILINE)


@pytest.mark.slow
def test_installed_wheel_lists_its_assets(installed: Path) -> None:
    result = run_installed(installed, "-m", "hubert_plugin", "assets", "list")

    assert result.returncode == 0, result.stderr


def test_constraints_fit_the_declared_dependencies(repo_dir: Path) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")

    import tomllib
    from packaging.requirements import Requirement

    project = tomllib.loads((repo_dir / "pyproject.toml").read_text())["project"]

    texts = [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]

    pins: dict[str, list[str]] = {}

    for line in (repo_dir / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)

            pins.setdefault(pin.name, []).append(next(iter(pin.specifier)).version)

    for requirement in (Requirement(t) for t in texts):
        assert requirement.name in pins, f"constraints.txt has no {requirement.name}"

        for version in pins[requirement.name]:
            assert requirement.specifier.contains(version), f"{requirement} does not allow {version}"


def test_readme_holds_the_two_commands(repo_dir: Path) -> None:
    readme = (repo_dir / "README.md").read_text()

    commands = dict(re.findall(r"<!-- ci: (\w+) -->\n+```sh\n(.+?)\n```", readme, re.DOTALL))

    assert commands == {
        "demo": "pip install '.[demo]' && fairseq2 recipe hubert pretrain runs/demo",
        "tests": "pip install -e '.[test]' && pytest",
    }


def test_checkout_root_shadows_no_part_of_an_installation(installed: Path, repo_dir: Path, tmp_path: Path) -> None:
    # `python -c` and `python -m` in the root of a checkout find its `hubert_plugin/` first, whatever is installed.
    checkout = tmp_path / "checkout"

    for name in ROOTS:
        shutil.copytree(repo_dir / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))

    code = (
        "import hubert_plugin, hubert_plugin.assets.cards, hubert_plugin.recipes.hubert as r;"
        "print(hubert_plugin.__file__, hubert_plugin.assets.cards.__path__[0], r.__file__)"
    )

    environ = {**os.environ, "PYTHONPATH": str(installed)}

    commands = (["-c", code], ["-m", "hubert_plugin", "recipe", "hubert", "list"])

    runs = [
        subprocess.run([sys.executable, *c], capture_output=True, text=True, cwd=checkout, env=environ, timeout=120)
        for c in commands
    ]

    assert [r.returncode for r in runs] == [0, 0], runs

    assert all(Path(p).is_relative_to(checkout) for p in runs[0].stdout.split())

    assert "pretrain" in runs[1].stdout

    assert "warning" not in runs[1].stderr
