"""Another package adds a head, a criterion and a feature source, and a run addresses them by name from YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import make_corpus, pretrain_config, read_metrics, write_config
from processes import Run, command_server

PLUGIN = '''
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from fairseq2.metrics import Mean, Sum

from hubert_plugin import register_criterion, register_feature_source, register_target_head
from hubert_plugin.registry import Criterion, FeatureSource, TargetHead


@dataclass(kw_only=True)
class BilinearConfig:
    gain: float = 1.0


class BilinearHead(TargetHead):
    """Dot products with codewords, times a gain."""

    def __init__(self, config, head_config, gain):
        super().__init__()
        self.label_set, self.size = head_config.label_set, head_config.size
        self.layer, self.weight = head_config.layer or config.num_layers, head_config.weight
        self.gain = gain
        self.codewords = torch.nn.Parameter(torch.randn(self.size, config.model_dim))
        print(f"bilinear head of {self.label_set}, gain {gain}")

    def forward(self, seqs):
        return self.gain * (seqs.float() @ self.codewords.float().T)


@dataclass(kw_only=True)
class SmoothConfig:
    smoothing: float = 0.1


class SmoothCriterion(Criterion):
    """Masked cross-entropy with label smoothing."""

    def __init__(self, module, config):
        self.module, self.smoothing = module, config.smoothing
        print(f"smoothing {config.smoothing}")

    def prepare_metric_bag(self, metric_bag):
        metric_bag.add("smooth_loss", Mean())
        metric_bag.add("masked_accuracy", Mean())
        metric_bag.add("num_examples", Sum())

    def __call__(self, batch, metric_bag):
        output = self.module(
            batch.waveforms,
            batch.num_samples if batch.padded else None,
            temporal_mask=batch.temporal_mask,
            masked_indices=batch.masked_indices,
            unmasked_indices=batch.unmasked_indices[:0],
        )
        loss = torch.nn.functional.cross_entropy(
            output.masked_logits[0], batch.masked_targets[0], reduction="sum", label_smoothing=self.smoothing
        )
        metric_bag.get("smooth_loss", Mean).update(loss.detach() / batch.num_masked, weight=batch.num_masked)
        hits = (output.masked_logits[0].argmax(-1) == batch.masked_targets[0]).float().mean()
        metric_bag.get("masked_accuracy", Mean).update(hits, weight=batch.num_masked)
        metric_bag.get("num_examples", Sum).update(batch.num_examples)
        return loss, batch.num_masked


@dataclass(kw_only=True)
class EnergyConfig:
    power: float = 2.0


class EnergySource(FeatureSource):
    """Energies of the four quarters of a frame, at 50 Hz."""

    def __init__(self, config):
        self.power = config.power
        print(f"power {config.power}")

    dim, rate = 4, 50

    def extract(self, waveforms):
        return [self._extract(w) for w in waveforms]

    def _extract(self, w):
        num_frames = (len(w) - 400) // 320 + 1
        windows = np.lib.stride_tricks.sliding_window_view(w, 400)[: 320 * num_frames : 320]
        return (np.abs(windows.reshape(num_frames, 4, 100)) ** self.power).mean(-1).astype(np.float32)

    def describe(self):
        return {"kind": "energy", "power": self.power}


def setup(container):
    register_target_head(
        container,
        "bilinear",
        BilinearConfig,
        lambda resolver, options: lambda config, head, shared: BilinearHead(config, head, options.gain),
    )
    register_criterion(
        container,
        "smooth",
        SmoothConfig,
        lambda resolver, config: lambda module, model: SmoothCriterion(module, config),
    )
    register_feature_source(container, "energy", EnergyConfig, lambda resolver, config: EnergySource(config))
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A throw-away distribution, as pip would install it."""
    folder = tmp_path_factory.mktemp("plugin")

    info = folder / "hubert_extras-1.0.dist-info"

    info.mkdir()

    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hubert-extras\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fairseq2.extension]\nextras = hubert_extras:setup\n")
    (folder / "hubert_extras.py").write_text(PLUGIN)

    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


SECTIONS = {
    "model": {"config_overrides": {"heads": [{"label_set": "km", "kind": "bilinear", "options": {"gain": 0.25}}]}},
    "dataset": {
        "labels": [],
        "label_making": {"features": {"name": "energy", "config": {"power": 1.5}}, "num_clusters": 6},
    },
    # The default criterion has other keys; they go with it.
    "criterion": {"name": "smooth", "config": {"smoothing": 0.2}},
    "report": {"enabled": False},
}


def pretrain(corpus: Path, out: Path, package: Path | None, *overrides: str) -> Run:
    config = write_config(out.with_suffix(".yaml"), pretrain_config(corpus, **SECTIONS))

    return command_server().pretrain(out, config, *overrides, path=[] if package is None else [package])


def test_run_uses_what_another_package_registered(corpus: Path, package: Path, tmp_path: Path) -> None:
    run = pretrain(corpus, tmp_path / "out", package)

    assert run.poll() == 0, run.raw[-3000:]

    for said in ("bilinear head of km, gain 0.25", "smoothing 0.2", "power 1.5"):
        assert said in run.text

    records = read_metrics(tmp_path / "out")

    assert len(records) == 12
    assert records[-1]["Learning Rate"] < records[3]["Learning Rate"]

    # Its provenance tells which features made the labels.
    (record,) = corpus.glob("labels/energy*/train.km.json")

    assert '"power": 1.5' in record.read_text()

    # The checkpoint names the kind of head, so the model is built again with it, where the package is installed.
    code = f"from hubert_plugin import load_hubert; print(load_hubert({str(tmp_path / 'out')!r}).target_heads)"

    run = command_server().run(code=code, path=[package])

    assert run.poll() == 0, run.raw[-3000:]
    assert "BilinearHead" in run.text

    run = command_server().run(code=code)

    assert "'bilinear' is not a known kind of target head" in run.text


def test_without_the_package_the_name_is_not_known(corpus: Path, tmp_path: Path) -> None:
    run = pretrain(corpus, tmp_path / "out", None, "dataset.label_making.features={name: mfcc}")

    assert run.poll() == 2, run.raw[-3000:]
    assert "'smooth' is not a known Criterion" in run.text
    assert "masked_cross_entropy" in run.text
    assert "Traceback" not in run.raw


@pytest.mark.parametrize(
    ("override", "phrases"),
    [
        ("criterion.name=smoth", ["'smoth' is not a known", "'smooth'"]),
        ("criterion.config.smothing=0.1", ["'smothing'", "'smoothing'"]),
        ("criterion.config.smoothing=much", ["criterion.config", "`float`"]),
        ("dataset.label_making.features.name=enrgy", ["'enrgy' is not a known", "'energy'"]),
        ("dataset.label_making.features.config.pwer=1", ["'pwer'", "'power'"]),
        ("model.config_overrides.heads=[{label_set: km, kind: bilinar}]", ["'bilinar' is not a known", "'bilinear'"]),
        ("model.config_overrides.heads=[{label_set: km, kind: bilinear, options: {gian: 1}}]", ["gian", "gain"]),
    ],
)
def test_mistakes_in_their_names_and_keys_are_answered(
    corpus: Path, package: Path, tmp_path: Path, override: str, phrases: list[str]
) -> None:
    run = pretrain(corpus, tmp_path / "out", package, override)

    for phrase in phrases:
        assert phrase in run.text, run.raw[-3000:]

    assert "Traceback" not in run.raw, run.raw[-3000:]
    assert run.poll() == 2, run.raw[-1000:]
