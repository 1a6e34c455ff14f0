"""What a recipe answers to wrong configuration and to errors, with fairseq2's real runner.

A throw-away recipe stands in for ours. Importing fairseq2 takes seconds, so one process imports it and forks for each
case; each case then goes through the whole command.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

RECIPE = """
from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fairseq2.error import OperationalError
from fairseq2.recipe.base import Recipe
from fairseq2.recipe.component import register_component
from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.task import Task
from fairseq2.utils.validation import ValidationResult

from hubert_plugin.errors import AudioError
from hubert_plugin.registry import ComponentSection


class Mouth:
    pass


@dataclass(kw_only=True)
class FlapConfig:
    speed: float = 1.0
    jaw: int = 2


@dataclass(kw_only=True)
class WhistleConfig:
    pitch: float = 440.0


@dataclass(kw_only=True)
class MouthSection(ComponentSection):
    component_kls = Mouth
    name: str = "flap"
    config: object = field(default_factory=FlapConfig)


@dataclass(kw_only=True)
class VoiceSection:
    volume: int = 5
    style: Literal["plain", "sung"] = "plain"
    muted: bool = False

    def validate(self):
        result = ValidationResult()
        if self.volume > 11:
            result.add_error("`volume` must be 11 or less.")
        return result


@dataclass(kw_only=True)
class SpeakConfig:
    text: str = "hello"
    voice: VoiceSection = field(default_factory=VoiceSection)
    choir: dict[str, VoiceSection] = field(default_factory=dict)
    parts: list[VoiceSection] = field(default_factory=list)
    optional: VoiceSection | None = None
    mouth: MouthSection = field(default_factory=MouthSection)
    free: object = None
    gang: GangSection = field(default_factory=GangSection)
    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))


class SpeakTask(Task):
    def __init__(self, context):
        self.context = context

    def run(self):
        config = self.context.get_config_as(SpeakConfig)
        if config.text == "audio error":
            raise AudioError("'a.wav' has 8000 Hz, 16000 Hz were expected.")
        if config.text == "wrapped audio error":
            raise RuntimeError("The reader failed.") from AudioError("'b.wav' is empty.")
        if config.text == "full disk":
            raise OperationalError("A system error occurred.") from OSError(28, "No space left on device", "model.pt")
        if config.text == "bug":
            raise KeyError("a programming error")
        (self.context.output_dir / "said.txt").write_text(f"{config.text} {config.voice.volume}")

    def request_stop(self):
        pass

    @property
    def step_nr(self):
        return 0

    def close(self):
        pass


class SpeakRecipe(Recipe):
    def register(self, container):
        register_component(container, Mouth, "flap", FlapConfig, lambda resolver, config: Mouth())
        register_component(container, Mouth, "whistle", WhistleConfig, lambda resolver, config: Mouth())

    def create_task(self, context):
        return SpeakTask(context)

    @property
    def config_kls(self):
        return SpeakConfig
"""

MAIN = """
from hubert_plugin.cli import run_recipe

if __name__ == "__main__":
    run_recipe(__package__, "recipe:SpeakRecipe")
"""

FILES = {
    "other_pkg/__init__.py": "",
    "other_pkg/recipes/__init__.py": "",
    "other_pkg/recipes/speak/__init__.py": '"""Say something."""\n',
    "other_pkg/recipes/speak/recipe.py": RECIPE,
    "other_pkg/recipes/speak/__main__.py": MAIN,
    "other_pkg/recipes/speak/configs/loud.yaml": "# Say it loudly.\nvoice:\n  volume: 11\n",
    "yaml/good.yaml": "text: from a file\nvoice: {_set_: {volume: 3}, _del_: [muted]}\n",
    "yaml/unknown.yaml": "txt: hi\nvoice:\n  volum: 1\nparts:\n  - volume: 1\n    stile: sung\n",
    "yaml/malformed.yaml": "text: hi\nvoice: {volume: 1\nb: [\n",
    "yaml/empty.yaml": "# nothing\n",
    "yaml/list.yaml": "- text\n",
}

DRIVER = """
import json, os, runpy, sys
from hubert_plugin.cli import main
from hubert_plugin.deferred import import_fairseq2
import_fairseq2()
import hubert_plugin.extension, other_pkg.recipes.speak.recipe

results = {}
for name, case in json.load(open("cases.json")).items():
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        fd = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        if case.get("break_extension"):
            import hubert_plugin.extension as extension
            def setup_fairseq2_extension(container):
                raise ValueError("the extension is broken")
            extension.setup_fairseq2_extension = setup_fairseq2_extension
            os.environ.pop("FAIRSEQ2_EXTENSION_TRACE", None)
        try:
            if case.get("module"):
                sys.argv = ["-m", *case["args"]]
                runpy.run_module("other_pkg.recipes.speak", run_name="__main__")
                code = 0
            else:
                code = main(case["args"])
        except SystemExit as ex:
            code = ex.code
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    results[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
json.dump(results, open("results.json", "w"))
"""

# The name of each case, its arguments, and what must be in the answer (exit code 2, no stack trace).
SENTENCES: dict[str, tuple[list[str], list[str]]] = {
    "unknown_key": (["--config", "txt=hi"], ["--config: 'txt' is not a known configuration key", "'text'"]),
    "unknown_nested_key": (
        ["--config", "voice.volum=3"],
        ["'voice.volum' is not a known", "mean 'voice.volume'?"],
    ),
    "right_key_wrong_section": (["--config", "volume=3"], ["'volume' is not a known", "'voice.volume'"]),
    "unknown_section": (["--config", "voise.volume=3"], ["'voise' is not a known", "Did you mean 'voice'"]),
    "unknown_key_in_value": (["--config", "voice={volum: 3}"], ["'voice.volum' is not a known"]),
    "unknown_key_in_optional": (["--config", "optional.volum=3"], ["'optional.volum' is not a known"]),
    "unknown_key_in_dict": (["--config", "choir.alto.volum=3"], ["'choir.alto.volum' is not a known"]),
    "unknown_key_deleted": (["--config", "del:voice.volum"], ["'voice.volum' is not a known"]),
    "unknown_component_key": (
        ["--config", "mouth.config.sped=1"],
        ["'mouth.config.sped' is not a known", "Did you mean 'mouth.config.speed'"],
    ),
    "unknown_keys_in_file": (
        ["--config-file", "yaml/unknown.yaml"],
        ["yaml/unknown.yaml: 'txt' is", "'voice.volum' is", "'parts[0].stile' is", "'parts[0].style'"],
    ),
    "exchanged_component": (
        ["--config", "mouth={name: whistle, config: {pich: 1}}"],
        ["'mouth.config' cannot be used", "'pich' is not a known key", "Did you mean 'pitch'"],
    ),
    "unknown_component": (["--config", "mouth.name=wistle"], ["'wistle' is not a known Mouth", "'whistle'"]),
    "wrong_type": (["--config", "voice.volume=loud"], ["'voice.volume' cannot be used", "must be of type `int`"]),
    "wrong_bool": (["--config", "voice.muted=3"], ["'voice.muted' cannot be used", "must be of type `bool`"]),
    "wrong_literal": (["--config", "voice.style=loud"], ["'voice.style' cannot be used", "plain, sung"]),
    "wrong_component_type": (["--config", "mouth.config.jaw=fast"], ["'mouth.config.jaw' cannot be used", "`int`"]),
    "wrong_element_type": (["--config", "parts=[{volume: x}]"], ["'parts[0].volume' cannot be used", "`int`"]),
    "scalar_for_section": (["--config", "voice=3"], ["'voice' cannot be used"]),
    "not_valid": (["--config", "voice.volume=12"], ["`volume` must be 11 or less."]),
    "no_yaml_value": (["--config", "text=[1"], ["--config: invalid key-value pair: text=[1"]),
    "malformed_file": (
        ["--config-file", "yaml/malformed.yaml"],
        ["'yaml/malformed.yaml', line 3", "not valid YAML"],
    ),
    "empty_file": (["--config-file", "yaml/empty.yaml"], ["'yaml/empty.yaml' is empty"]),
    "list_file": (["--config-file", "yaml/list.yaml"], ["must hold keys and values, but holds a list"]),
    "missing_file": (["--config-file", "yaml/none.yaml"], ["There is no configuration file 'yaml/none.yaml'"]),
    "folder_file": (["--config-file", "yaml"], ["'yaml' is a folder"]),
    "unknown_preset": (["--preset", "lout"], ["'lout' is not a known preset", "'loud'"]),
    "hubert_error": (["--config", "text=audio error"], ["'a.wav' has 8000 Hz, 16000 Hz were expected."]),
    "wrapped_hubert_error": (["--config", "text=wrapped audio error"], ["'b.wav' is empty."]),
    "full_disk": (["--config", "text=full disk"], ["No space left on device", "model.pt"]),
}

OTHERS: dict[str, list[str]] = {
    "plain": ["plain.out"],
    "preset": ["preset.out", "--preset", "loud", "--config", "text=hey"],
    "file": ["file.out", "--config-file", "yaml/good.yaml"],
    "directives": ["directives.out", "--config", "set:voice.volume=2", "del:voice.muted", "choir.alto.volume=1"],
    "component": ["component.out", "--config", "mouth={name: whistle, config: {pitch: 1}}"],
    "free": ["free.out", "--config", "free={any: thing}"],
    "dump": ["--dump-config", "--preset", "loud"],
    "bug": ["bug.out", "--config", "text=bug"],
    "no_exit": ["no_exit.out", "--config", "text=audio error", "--no-exit-on-error"],
}


@dataclass
class Answers:
    folder: Path
    codes: dict[str, int]

    def text(self, name: str) -> str:
        # rich wraps lines and puts the time before them.
        return re.sub(r"\s+", " ", (self.folder / f"{name}.log").read_text())


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory,
    make_distribution: Callable[[Path, str, Mapping[str, str], Mapping[str, str]], Path],
) -> Answers:
    folder = make_distribution(tmp_path_factory.mktemp("speak"), "others", {"other": "other_pkg.recipes"}, FILES)

    speak = ["recipe", "other", "speak"]

    cases: dict[str, dict[str, object]] = {
        n: {"args": [*speak, f"{n}.out", *args, "--no-rich"]} for n, (args, _) in SENTENCES.items()
    }
    cases |= {n: {"args": [*speak, *args]} for n, args in OTHERS.items()}
    cases["break_extension"] = {"args": [*speak, "break.out"], "break_extension": True}
    cases["module"] = {"args": ["module.out", "--preset", "loud"], "module": True}
    cases["asset"] = {"args": ["assets", "show", "no_such_asset"]}

    (folder / "cases.json").write_text(json.dumps(cases))

    env = {**os.environ, "PYTHONPATH": str(folder), "FAIRSEQ2_EXTENSION_TRACE": "1"}

    subprocess.run([sys.executable, "-c", DRIVER], cwd=folder, env=env, check=True, timeout=600)

    return Answers(folder, json.loads((folder / "results.json").read_text()))


@pytest.mark.parametrize("name", list(SENTENCES))
def test_mistake_is_answered_with_a_sentence_and_exit_code_2(answers: Answers, name: str) -> None:
    text = answers.text(name)

    for sentence in SENTENCES[name][1]:
        assert sentence in text

    assert "Traceback" not in text
    assert answers.codes[name] == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain", "hello 5"),
        ("preset", "hey 11"),
        ("file", "from a file 3"),
        ("directives", "hello 2"),
        ("free", "hello 5"),
        ("component", "hello 5"),
    ],
)
def test_recipe_runs_with_its_configuration(answers: Answers, name: str, said: str) -> None:
    assert answers.codes[name] == 0, answers.text(name)

    # What fairseq2 says to its own developers is no news to a user.
    assert "DeprecationWarning" not in answers.text(name)

    assert (answers.folder / f"{name}.out" / "said.txt").read_text() == said


def test_dumped_configuration_holds_the_preset(answers: Answers) -> None:
    assert answers.codes["dump"] == 0
    assert "volume: 11" in answers.text("dump")


def test_mistakes_of_programmers_keep_their_stack_trace(answers: Answers) -> None:
    assert answers.codes["bug"] == 1
    assert "Traceback" in answers.text("bug")


def test_no_exit_on_error_lets_errors_through(answers: Answers) -> None:
    assert answers.codes["no_exit"] not in (0, 2)
    assert "Traceback" in answers.text("no_exit")


def test_broken_extension_is_named(answers: Answers) -> None:
    text = answers.text("break_extension")

    assert answers.codes["break_extension"] == 2
    assert "could not be set up as an extension of fairseq2" in text
    assert "ValueError: the extension is broken" in text
    assert "Traceback" not in text


def test_verb_runs_as_a_module_with_presets(answers: Answers) -> None:
    assert answers.codes["module"] == 0, answers.text("module")

    assert (answers.folder / "module.out" / "said.txt").read_text() == "hello 11"


def test_verb_as_a_module_has_the_same_help(answers: Answers) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "other_pkg.recipes.speak", "--help"],
        env={**os.environ, "PYTHONPATH": str(answers.folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert "usage: python -m other_pkg.recipes.speak" in result.stdout
    assert re.search(r"^  loud +Say it loudly\.$", result.stdout, re.MULTILINE)


def test_asset_command_is_passed_on(answers: Answers) -> None:
    assert answers.codes["asset"] == 2
    assert "no_such_asset asset is not found" in answers.text("asset")
    assert "Traceback" not in answers.text("asset")
