"""``analyze`` from the command line: what it writes, and what it says of bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import NUM_UNITS, make_corpus
from processes import Run, command_server

from hubert_plugin.analysis.alignments import AlignmentConfig, find_alignment, read_alignments
from hubert_plugin.analysis.purity import unit_quality
from hubert_plugin.data.labels import open_labels
from hubert_plugin.data.manifest import read_manifest
from hubert_plugin.demo import DemoCorpusConfig, ensure_demo_corpus, frame_phones, read_alignment

DEMO = {"train_minutes": 0.4, "valid_minutes": 0.5, "num_speakers": 4, "num_jobs": 1, "num_valid_speakers": 2}

PNG = b"\x89PNG\r\n"


def analyze(output_dir: Path, *overrides: str, **kwargs: Any) -> Run:
    return command_server().run(
        "recipe", "hubert", "analyze", output_dir, "--no-rich", "--config", *overrides, **kwargs
    )


def read_result(output_dir: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((output_dir / "analysis.json").read_text())

    return result


@pytest.fixture(scope="module")
def demo_options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [f"demo.{k}={v}" for k, v in {**DEMO, "cache_dir": tmp_path_factory.mktemp("cache")}.items()]


@pytest.fixture(scope="module")
def demo_dir(demo_options: list[str]) -> Path:
    cache_dir = Path(demo_options[-1].partition("=")[2])

    return ensure_demo_corpus(DemoCorpusConfig(**DEMO, cache_dir=cache_dir))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with labels and, beside its manifests, phones that change every 100 ms."""
    folder = make_corpus(tmp_path_factory.mktemp("corpus"), num_train=4, num_valid=4)

    rng = np.random.default_rng(0)

    manifest = read_manifest(folder, "valid")

    lines = [
        f"{id_}\t{0.1 * i:.1f}\t{0.1 * i + 0.1:.1f}\t{rng.choice(list('abcd'))}"
        for id_, size in zip(manifest.ids, manifest.sizes.tolist(), strict=True)
        for i in range(-(-size // 1600))
    ]

    # Not beside the manifests: a table there would be taken for one.
    (folder / "times").mkdir()

    (folder / "times" / "phones.tsv").write_text("\n".join(lines) + "\n")

    return folder


@pytest.mark.slow
def test_layers_are_analysed_on_the_demo_corpus_with_its_own_times(
    tmp_path: Path, data_dir: Path, demo_options: list[str], demo_dir: Path
) -> None:
    run = analyze(
        tmp_path / "out",
        f"model={data_dir / 'fairseq' / 'tiny_post.pt'}",
        "num_clusters=[6,12]",
        "trials=2",
        "fit_minutes=0.2",
        *demo_options,
    )

    assert run.poll() == 0, run.raw

    result = read_result(tmp_path / "out")

    spaces = result["spaces"]

    assert list(spaces) == ["mfcc", "L1", "L2", "L3"]

    for space in spaces.values():
        assert list(space["units"]) == ["6", "12"]

        for units in space["units"].values():
            assert len(units["trials"]) == 2
            assert 0.0 < units["pnmi"] < 1.0
            assert 0.0 < units["agreement"] <= 1.0

        assert list(space["abx"]) == ["triphone within", "triphone across", "phoneme within", "phoneme across"]
        assert all(0.0 <= score["error"] <= 1.0 for score in space["abx"].values())

        assert set(space["cca"]) >= {"phones"}

    assert result["corpus"]["alignment"] == str(demo_dir / "valid.align.tsv")

    best = result["best_by_pnmi"]["12"]

    assert best == max(spaces, key=lambda s: spaces[s]["units"]["12"]["pnmi"])

    written = {p.name for p in (tmp_path / "out").iterdir() if p.suffix in (".png", ".tsv", ".json")}

    assert written == {
        "analysis.json",
        "quality.png",
        *(f"joint_{result['best_by_pnmi'][k]}_{k}.{suffix}" for k in ("6", "12") for suffix in ("png", "tsv")),
    }

    assert all(p.read_bytes().startswith(PNG) for p in (tmp_path / "out").glob("*.png"))

    for text in ("Units by layer", "ABX error (%)", "Correlation with labels (PWCCA)", "triphone", "mfcc"):
        assert text in run.text

    # The demo corpus' times are read as its own reader reads them.
    manifest = read_manifest(demo_dir, "valid")

    alignment = read_alignments(AlignmentConfig(), manifest, default=find_alignment(manifest))

    assert alignment is not None

    for id_, segments in read_alignment(demo_dir, "valid").items():
        assert alignment.frame_labels(id_, 40, 50) == frame_phones(segments, 40, 50)


def test_label_stores_are_measured_at_their_rate_and_without_matplotlib_too(tmp_path: Path, corpus: Path) -> None:
    # A module of this name that cannot be found stands in for one that is not installed.
    code = f"""
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "matplotlib" else found(name, *a)
from hubert_plugin.analysis import plots
plots.find_spec = importlib.util.find_spec
from hubert_plugin.cli import main
sys.exit(main(["recipe", "hubert", "analyze", {str(tmp_path / "out")!r}, "--no-rich", "--config",
    "manifest_dir={corpus}", "labels=[km]", "alignment.path={corpus / "times" / "phones.tsv"}"]))
"""

    run = command_server().start(code=code)

    assert run.wait() == 0, run.raw

    assert "Pictures need matplotlib, which is not installed: `pip install 'fairseq2-hubert[plots]'`" in run.text
    assert not list((tmp_path / "out").glob("*.png"))

    manifest = read_manifest(corpus, "valid")

    labels = open_labels(corpus, "valid", "km", manifest)

    segments: dict[str, list[tuple[float, float, str]]] = {}

    for line in (corpus / "times" / "phones.tsv").read_text().splitlines():
        id_, start, end, phone = line.split("\t")

        segments.setdefault(id_, []).append((float(start), float(end), phone))

    expected = unit_quality(
        (frame_phones(segments[id_], len(labels[i]), 50), labels[i]) for i, id_ in enumerate(manifest.ids)
    )

    measured = read_result(tmp_path / "out")["label_sets"]["km"]

    assert measured["quality"]["pnmi"] == pytest.approx(expected.pnmi)
    assert measured["quality"]["phone_purity"] == pytest.approx(expected.phone_purity)
    assert measured["statistics"]["num_units"] == NUM_UNITS

    rows = [line.split("\t") for line in (tmp_path / "out" / "joint_km.tsv").read_text().splitlines()]

    assert sum(int(n) for row in rows[1:] for n in row[1:]) == expected.num_frames


def test_a_unit_model_is_measured_on_its_features(tmp_path: Path, corpus: Path) -> None:
    server = command_server()

    cluster = server.run(
        "recipe", "hubert", "cluster", tmp_path / "units", "--config", f"manifest_dir={corpus}",
        "units.config={num_clusters: 5, n_init: 1}",
    )  # fmt: skip

    assert cluster.poll() == 0, cluster.raw

    run = analyze(tmp_path / "out", f"manifest_dir={corpus}", f"unit_model={tmp_path / 'units' / 'units.safetensors'}")

    assert run.poll() == 0, run.raw

    assert "There are no phone times" in run.text

    measured = read_result(tmp_path / "out")["label_sets"]["km"]

    assert measured["quality"] is None
    assert measured["statistics"]["num_units"] == 5

    # Beside labels of the same name, neither is lost.
    run = analyze(
        tmp_path / "both", f"manifest_dir={corpus}", f"unit_model={tmp_path / 'units' / 'units.safetensors'}",
        "labels=[km]", f"alignment.path={corpus / 'times' / 'phones.tsv'}", "plots=false",
    )  # fmt: skip

    assert run.poll() == 0, run.raw

    sets = read_result(tmp_path / "both")["label_sets"]

    assert {name: s["statistics"]["num_units"] for name, s in sets.items()} == {"km": NUM_UNITS, "km (unit model)": 5}

    assert {p.name for p in (tmp_path / "both").glob("*.tsv")} == {"joint_km.tsv", "joint_km_unit_model.tsv"}

    other = analyze(
        tmp_path / "other",
        f"manifest_dir={corpus}",
        f"unit_model={tmp_path / 'units' / 'units.safetensors'}",
        "features.config={rate: 50}",
    )

    assert other.poll() == 2
    assert "was fitted on the features" in other.text and '"rate": 50' in other.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "There is nothing to analyze: name label sets"),
        (["labels=[km]", "num_clusters=[1]"], "`num_clusters` must hold numbers of 2 or greater"),
        (["labels=[none]"], "There are no labels"),
        (["labels=[km]", "abx.enabled=true"], "are no features to measure. Name a `model`, or set `mfcc=true`."),
        (["labels=[km]", "split=test"], "test.tsv' does not exist: the splits there are: train, valid"),
        (["labels=[km]", "alignment.path={corpus}/none.ctm"], "There is no alignment"),
        (["labels=[km]", "alignment.path={corpus}/times/other.tsv"], "it is of other utterances"),
        (["labels=[km]", "alignment.path={corpus}/times/bad.tsv"], "'b' goes from 0.5 to 0.3 s"),
        (
            ["labels=[km]", "alignment.path={corpus}/times/phones.tsv", "alignment.format=praat"],
            "`format` must be one of",
        ),
        (["labels=[km]", "alignment.rate=30"], "`rate` must be 50 or 100 frames per second"),
        (["model={model}", "layers=[1,7]"], "`layers` must be between 0 (the input of block 1) and 3"),
        (["model={model}", "abx.items=[{corpus}/times/other.item]"], "it is of other utterances"),
        (["model={model}", "abx.enabled=true"], "ABX needs item files: name them with `abx.items`"),
        (["model={model}", "abx.speaker=[both]"], "`speaker` must list `within`, `across` or both"),
        (["model={model}", "cca.enabled=true"], "needs word or phone times"),
        (["model={model}", "num_clusters=[50000]"], "50000 clusters needs at least as many frames"),
        (["model={corpus}/none.pt"], "is neither a folder, nor a file"),
    ],
)
def test_bad_input_is_told_with_a_sentence(
    tmp_path: Path, data_dir: Path, corpus: Path, overrides: list[str], message: str
) -> None:
    (corpus / "times" / "other.tsv").write_text("x\t0\t1\ta\n")
    (corpus / "times" / "bad.tsv").write_text("valid00\t0\t0.5\ta\nvalid00\t0.5\t0.3\tb\n")
    (corpus / "times" / "other.item").write_text(
        "#file onset offset #phone prev-phone next-phone speaker\nx 0 1 a b c s\n"
    )

    values = {"corpus": str(corpus), "model": str(data_dir / "fairseq" / "tiny_post.pt")}

    run = analyze(tmp_path / "out", f"manifest_dir={corpus}", *(o.format(**values) for o in overrides))

    assert run.poll() == 2, run.raw
    assert message in run.text
    assert "Traceback" not in run.raw
    assert not (tmp_path / "out" / "analysis.json").exists()


def test_what_an_earlier_analysis_left_is_not_taken_for_part_of_this_one(tmp_path: Path, corpus: Path) -> None:
    times = f"alignment.path={corpus / 'times' / 'phones.tsv'}"

    assert analyze(tmp_path / "out", f"manifest_dir={corpus}", "labels=[km]", times).poll() == 0
    assert (tmp_path / "out" / "joint_km.tsv").is_file()

    for name in ("train.align.tsv", "valid.align.tsv"):
        assert not (corpus / name).exists()

    run = analyze(tmp_path / "out", f"manifest_dir={corpus}", "labels=[km]", "words.path=words.tsv")

    assert run.poll() == 0
    assert "Without effect, being for features" in run.text and "`words.path`" in run.text
    assert "view consistency" not in run.text
    assert not list((tmp_path / "out").glob("joint_*"))


def test_a_kill_leaves_the_former_result_and_the_same_command_ends_it(tmp_path: Path, corpus: Path) -> None:
    output_dir = tmp_path / "out"

    args = (f"manifest_dir={corpus}", "labels=[km]", f"alignment.path={corpus / 'times' / 'phones.tsv'}")

    assert analyze(output_dir, *args).poll() == 0

    before = (output_dir / "analysis.json").read_bytes()

    run = command_server().start("recipe", "hubert", "analyze", output_dir, "--no-rich", "--config", *args)

    run.kill()

    assert (output_dir / "analysis.json").read_bytes() == before

    shutil.rmtree(output_dir)

    assert analyze(output_dir, *args).poll() == 0
    assert (output_dir / "analysis.json").read_bytes() == before
