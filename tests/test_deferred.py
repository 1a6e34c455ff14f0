"""Commands import fairseq2 without transformers and wandb, and what needs these works nevertheless."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fairseq2
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hubert_plugin.deferred import LIBRARIES, _find_deferrable

PRELUDE = """
import json, sys
from pathlib import Path

import hubert_plugin
from hubert_plugin.deferred import import_fairseq2

import_fairseq2()

folder = Path(sys.argv[1])

def imported():
    return [name for name in ("transformers", "wandb", "sklearn") if name in sys.modules]
"""


def run(script: str, folder: Path, **env: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(folder)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert result.returncode == 0, result.stderr[-3000:]

    return result.stdout


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model and its tokenizer, as transformers writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llama")

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "wave": 2, "of": 3}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)

    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=4
    )

    torch.manual_seed(0)

    LlamaForCausalLM(config).save_pretrained(folder)

    return folder


@pytest.mark.slow
def test_what_fairseq2_does_with_hugging_face_is_done_by_the_real_library(llama: Path) -> None:
    """Tokenizers, models, exported configurations, checks of types: each through fairseq2's own functions."""
    run(
        """
import torch
from fairseq2.data.tokenizers.hg import load_hg_token_model
from fairseq2.models.hg import converter, factory, hub

assert imported() == []

# Nothing can be an instance of what is not imported: asking imports nothing.
assert not isinstance(torch.nn.Linear(1, 1), hub.PreTrainedModel) and imported() == []

tokens = load_hg_token_model(folder, unk_token="<unk>")

assert tokens.encode("a wave of noise") == [1, 2, 3, 0], tokens.encode("a wave of noise")
assert tokens.vocab_info.unk_idx == 0 and "transformers" in imported() and "wandb" not in imported()

import transformers

assert transformers.__version__ and type(tokens._tok) is transformers.PreTrainedTokenizerFast
assert factory._has_transformers and factory._import_class_from_transformers("LlamaConfig") is transformers.LlamaConfig

model = factory.AutoModelForCausalLM.from_pretrained(folder)

assert type(model) is transformers.LlamaForCausalLM
assert isinstance(model, hub.PreTrainedModel) and issubclass(type(model), factory.PreTrainedModel)
assert not isinstance(model, converter.PretrainedConfig) and isinstance(model.config, converter.PretrainedConfig)
assert hub.PreTrainedModel is factory.PreTrainedModel

expected = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[1, 2, 3]])).logits

assert torch.equal(model(torch.tensor([[1, 2, 3]])).logits, expected)

config = converter.HuggingFaceConfig(data={"hidden_size": 24}, kls_name="LlamaConfig", arch="LlamaForCausalLM")

(folder / "out").mkdir()

converter.save_hugging_face_model(folder / "out", {"x": torch.zeros(1)}, config)

saved = json.loads((folder / "out/config.json").read_text())

assert saved["hidden_size"] == 24 and saved["model_type"] == "llama"
""",
        llama,
    )


def test_all_of_fairseq2_that_imports_the_libraries_has_the_same_stand_ins(tmp_path: Path) -> None:
    """Otherwise its container would look for parts by other types than they are registered with."""
    root = Path(fairseq2.__file__).parent

    line = re.compile(rf"^(?:import|from) (?:{'|'.join(LIBRARIES)})\b", re.MULTILINE)

    importing = [
        ".".join(f.relative_to(root.parent).with_suffix("").parts)
        for f in root.rglob("*.py")
        if line.search(f.read_text())
    ]

    assert "fairseq2.recipe.composition.metric_recorders" in importing and len(importing) > 6

    assert (
        json.loads(run(f"print(json.dumps([name for name in {importing} if name not in sys.modules]))", tmp_path)) == []
    )


@pytest.mark.slow
def test_wandb_is_the_real_one_when_it_is_used_and_its_stand_ins_can_be_caught(tmp_path: Path) -> None:
    run(
        """
from fairseq2.recipe.composition import metric_recorders as composition
from fairseq2.recipe.internal import metric_recorders as internal

assert imported() == []

try:
    raise KeyError
except (ValueError, internal.WandbUsageError):
    raise SystemExit("not one of them")
except KeyError:
    pass

# The container knows its parts by their types.
from fairseq2.metrics.recorders import wandb as recorders

assert composition.WandbRun is internal.WandbRun is recorders.WandbRun

new_id = composition.wandb.util.generate_id()

assert len(new_id) == 8 and "wandb" in imported()

run = composition.wandb.init(mode="offline", dir=folder)

import wandb

assert type(run) is wandb.Run and isinstance(run, composition.WandbRun)

run.finish()
""",
        tmp_path,
        WANDB_SILENT="true",
    )


def test_commands_begin_without_them(tmp_path: Path) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "hubert_plugin",
            "recipe",
            "hubert",
            "manifest",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert result.returncode == 2, result.stderr[-3000:]

    names = set(re.findall(r"\|\s+([\w.]+)$", result.stderr, re.MULTILINE))

    # Stand-ins are traced by their names, too: what the libraries import themselves is not there.
    assert "fairseq2.recipe.cli" in names and not names & {"transformers.utils", "wandb.sdk", "sklearn", "scipy"}


def test_it_can_be_switched_off_and_is_for_known_versions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LIBRARIES:
        monkeypatch.delitem(sys.modules, name, raising=False)

    assert _find_deferrable() == list(LIBRARIES)

    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))

    assert _find_deferrable() == ["transformers"]

    monkeypatch.setenv("HUBERT_DEFERRED", "0")

    assert _find_deferrable() == []

    monkeypatch.setenv("HUBERT_DEFERRED", "1")
    monkeypatch.setattr("hubert_plugin.deferred.version", lambda name: "0.8.2")

    assert _find_deferrable() == []
