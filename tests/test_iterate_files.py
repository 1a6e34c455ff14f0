"""Files of a refinement that were deleted, altered, damaged, moved or copied: what is made again, and what is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from refined import made_refinement, original_refinement  # noqa: F401 - fixtures
from refinement import Refinement, line_of


@pytest.mark.parametrize(
    ("step", "name", "again"),
    [
        ("round1/cluster", "units.safetensors", ["round1/cluster", "report"]),
        ("round1/label", "valid.km", ["round1/label", "report"]),
        ("round1/analyze", "analysis.json", ["round1/analyze", "report"]),
        ("report", "index.html", ["report"]),
    ],
)
@pytest.mark.parametrize("how", ["missing", "altered"])
def test_a_deleted_or_altered_result_is_made_again(
    made: Refinement, step: str, name: str, again: list[str], how: str
) -> None:
    path = made.out / step / name

    before, numbers = path.read_text(), made.numbers()

    if how == "missing":
        path.unlink()
    else:
        path.write_text(before[:-2] + "x\n")  # as long as before

    text = made.run()

    verb = "is missing" if how == "missing" else "was altered"

    assert line_of(text, step) == f"{step.replace('/', ' / ')}: again, because {step}/{name} {verb}"
    assert path.read_text() == before
    assert made.numbers() == numbers

    # The report tells times, and those of what was done again are others.
    assert made.done() == again


def test_a_step_made_again_in_as_long_a_time_is_told_by_the_report(made: Refinement) -> None:
    path = made.out / "state/round1-analyze.json"

    record = json.loads(path.read_text())

    path.write_text(json.dumps(record | {"started": "2026-01-01T00:00:00+00:00"}))

    made.run()

    assert made.done() == ["report"]


def test_a_deleted_folder_is_made_again(made: Refinement) -> None:
    shutil.rmtree(made.out / "round1/label")

    made.run()

    assert made.done() == ["round1/label", "report"]


def test_a_damaged_checkpoint_is_removed_and_the_training_goes_on_from_the_one_before(made: Refinement) -> None:
    folder = made.out / "round1/pretrain/checkpoints"

    weights = folder / "step_4/model/pp_00/weights.pt"

    before = weights.read_text()

    weights.write_text("damaged")

    mark = folder / "step_3/mark"
    mark.touch()

    text = made.run()

    assert "step_4/model/pp_00/weights.pt was altered" in line_of(text, "round1/pretrain")
    assert weights.read_text() == before
    assert mark.exists()  # nobody began anew
    assert made.done() == ["round1/pretrain", "report"]


def test_a_moved_folder_goes_on_where_it_was(made: Refinement) -> None:
    shutil.rmtree(made.out / "round2/analyze")

    made.out.rename(made.folder / "moved")

    made.out_name = "moved"

    made.run()

    entries = made.asked()

    assert [place for place, _, _ in entries] == ["round2/analyze", "."]
    assert not any(str(made.folder / "out") in option for _, options, _ in entries for option in options)


def test_what_lies_in_a_folder_moves_with_it(made: Refinement) -> None:
    """Manifests of the user's that lie in OUT: the configuration that is kept there names them by their place in it."""
    shutil.copytree(made.folder / "data", made.out / "data")

    made.config["dataset"]["manifest_dir"] = str(made.out / "data")
    made.run()

    assert "manifest_dir: '{OUT}/data'" in (made.out / "refinement.yaml").read_text()

    made.out.rename(made.folder / "moved")

    command = ["recipe", "hubert", "iterate", str(made.folder / "moved"), "--print-command", "round1/label"]

    answer = subprocess.run([sys.executable, "-m", "hubert_plugin", *command], capture_output=True, text=True)

    assert answer.returncode == 0, answer.stderr
    assert "manifest_dir=data" in answer.stdout


def test_a_copied_folder_is_done_too(made: Refinement) -> None:
    shutil.copytree(made.out, made.folder / "copy")
    shutil.rmtree(made.out)

    made.out_name = "copy"

    made.run()

    assert made.done() == []


def test_times_of_files_and_a_clock_that_goes_back_decide_nothing(made: Refinement) -> None:
    for idx, path in enumerate(sorted(made.out.rglob("*"))):
        if path.is_file():
            os.utime(path, (1_000_000 + 1000 * (idx % 7), 4_000_000_000 - 1000 * idx))

    made.run()

    assert made.done() == []

    # A result that was altered, and whose times say that it is older than everything.
    path = made.out / "round1/cluster/units.safetensors"
    path.write_text("x" * len(path.read_text()))
    os.utime(path, (1, 1))

    made.run()

    assert made.done() == ["round1/cluster", "report"]


def test_a_file_that_was_written_without_a_change_of_its_times_is_noticed(made: Refinement) -> None:
    path = made.out / "round1/label/train.km"

    stat, text = path.stat(), path.read_text()

    with path.open("r+") as fp:
        fp.write("x" * (len(text) - 1))

    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    made.run()

    assert made.done() == ["round1/label", "report"]


def test_records_that_cannot_be_read_are_made_anew(made: Refinement) -> None:
    (made.out / "state/round1-label.json").write_text("{")
    (made.out / "state/digests.json").write_text("[]")

    numbers = made.numbers()

    made.run()

    assert made.done() == ["round1/label", "report"]
    assert made.numbers() == numbers
