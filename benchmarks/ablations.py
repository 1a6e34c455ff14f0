"""The ablations of the HuBERT paper (Tables V and VI) and MS-HuBERT, on the demo corpus.

    python -m benchmarks.ablations OUT

trains a toy model for each cell of the tables, all for the same number of updates, clusters all of their layers with
the same number of units, and compares these with the phones of speakers that training never heard. It prints the
tables with PNMI of the best layer and masked accuracy in place of the paper's word error rates, and says what agrees
with the paper and what does not. Everything is done by the ordinary verbs, each in a folder of its own below OUT.

The same command goes on where it was interrupted: OUT/ablations.json keeps what each cell gave together with its
settings, and only cells that are missing, or have other settings, are computed.

What cannot agree: word error rates need fine-tuning, an hour of synthetic speech is no LibriSpeech, and a thousand
updates are not 100,000. The order within a table is what can be compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from typing import Any

from benchmarks.ablation_tables import CELLS, Cell, render

RESULTS = "ablations.json"

SPLITS = ("train", "valid")


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    num_steps: int

    eval_clusters: int
    """The number of units that all models' layers are clustered into, whatever they were trained on."""

    trials: int

    fit_minutes: float

    seed: int

    demo: dict[str, Any] = field(default_factory=dict)
    """Overrides of ``dataset.demo``."""

    overrides: tuple[str, ...] = ()
    """More overrides of ``pretrain``."""

    num_finetune_steps: int = 0
    """Updates of a recogniser on top of each model; 0: none."""


def main() -> None:
    parser = create_parser()

    args = parser.parse_args()

    cells = choose(parser, args)

    out: Path = args.out

    out.mkdir(parents=True, exist_ok=True)

    sizes = make_sizes(args)

    started = time.monotonic()

    results = read_results(out)

    corpus = make_corpus(sizes)

    for nr, cell in enumerate(cells, 1):
        settings = describe(cell, sizes)

        if results.get(cell.name, {}).get("settings") == settings:
            say(f"[{nr}/{len(cells)}] {cell.name}: known")

            continue

        say(f"[{nr}/{len(cells)}] {cell.name}: {cell.title}")

        cell_started = time.monotonic()

        result = run_cell(out, cell, corpus, sizes)

        results[cell.name] = {
            "settings": settings,
            **result,
            "seconds": round(time.monotonic() - cell_started, 1),
        }

        write_results(out, results)

    known = {c.name: results[c.name] for c in CELLS if results.get(c.name, {}).get("settings") == describe(c, sizes)}

    print(render(known, sizes.num_steps, sizes.eval_clusters))

    say(f"{len(cells)} cells in {time.monotonic() - started:.0f} s; all numbers: {out / RESULTS}")


def create_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False, prog="python -m benchmarks.ablations")

    parser.add_argument("out", type=Path, help="the folder of all runs and of the results")
    parser.add_argument("--tables", nargs="+", choices=("V", "VI", "MS"), default=("V", "VI", "MS"))
    parser.add_argument("--cells", nargs="+", help="only these: " + " ".join(c.name for c in CELLS))
    parser.add_argument("--steps", type=int, default=1000, help="updates of each training")
    parser.add_argument("--eval-clusters", type=int, default=100, help="units that layers are clustered into")
    parser.add_argument("--trials", type=int, default=3, help="fits of k-means that are averaged")
    parser.add_argument("--fit-minutes", type=float, default=30.0, help="audio that layers' units are fitted on")
    parser.add_argument("--finetune", type=int, default=0, metavar="UPDATES", help="fine-tune, too: adds CER")
    parser.add_argument("--seed", type=int, default=2, help="of the training")
    parser.add_argument("--demo", nargs="*", default=[], metavar="KEY=VALUE", help="options of the demo corpus")
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE", help="more options of `pretrain`")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see that it runs")

    return parser


def choose(parser: ArgumentParser, args: Namespace) -> list[Cell]:
    """Return the cells that are asked for, in the tables' order."""
    names = [c.name for c in CELLS]

    if args.cells and (unknown := [name for name in args.cells if name not in names]):
        parser.error(f"unknown cells {', '.join(unknown)}; there are {', '.join(names)}")

    return [c for c in CELLS if (c.name in args.cells if args.cells else bool(set(c.tables).intersection(args.tables)))]


def make_sizes(args: Namespace) -> Sizes:
    demo: dict[str, Any] = dict(option.split("=", 1) for option in args.demo)

    if args.quick:
        tiny = {"train_minutes": "0.6", "valid_minutes": "0.4", "num_speakers": "4", "num_valid_speakers": "2"}

        overrides = ("task.config.batching.batch_seconds=4", *args.config)

        return Sizes(2, 8, 1, 0.3, args.seed, {**tiny, "num_jobs": "1", **demo}, overrides, args.finetune)

    return Sizes(
        args.steps,
        args.eval_clusters,
        args.trials,
        args.fit_minutes,
        args.seed,
        demo,
        tuple(args.config),
        args.finetune,
    )


def describe(cell: Cell, sizes: Sizes) -> dict[str, Any]:
    """Return all that a cell's result depends on."""
    return {
        "units": cell.units.name,
        "unit_options": list(cell.units.options),
        "labels": list(cell.labels),
        "options": list(cell.options),
        "num_steps": sizes.num_steps,
        "eval_clusters": sizes.eval_clusters,
        "trials": sizes.trials,
        "fit_minutes": sizes.fit_minutes,
        "seed": sizes.seed,
        "demo": corpus_options(sizes),
        "overrides": list(sizes.overrides),
        "num_finetune_steps": sizes.num_finetune_steps,
    }


def make_corpus(sizes: Sizes) -> Path:
    from hubert_plugin.demo import DemoCorpusConfig, ensure_demo_corpus

    defaults = DemoCorpusConfig()

    values = {}

    for key, value in sizes.demo.items():
        kind = type(getattr(defaults, key))

        # What may be null is a whole number, and folders are what is left.
        values[key] = kind(value) if kind in (int, float, str) else Path(value) if key == "cache_dir" else int(value)

    return ensure_demo_corpus(DemoCorpusConfig(**values))


def run_cell(out: Path, cell: Cell, corpus: Path, sizes: Sizes) -> dict[str, Any]:
    """Make the labels of a cell unless they are there, train, and measure."""
    root = out / identity(sizes)

    units, labels = root / "units" / cell.units.name, root / "labels" / cell.units.name

    manifest = f"manifest_dir={corpus}"

    features = [option for option in cell.units.options if option.startswith("features.")]

    run_verb("cluster", units, [manifest, *cell.units.options])

    run_verb(
        "label",
        labels,
        [
            manifest,
            f"unit_model={units / 'units.safetensors'}",
            f"splits=[{','.join(SPLITS)}]",
            "overwrite=true",
            *features,
        ],
    )

    run = root / f"steps{sizes.num_steps}-seed{sizes.seed}" / cell.name

    every = sizes.num_steps

    run_verb(
        "pretrain",
        run,
        [
            f"dataset.{manifest}",
            f"dataset.label_dir={labels}",
            f"dataset.labels=[{','.join(cell.labels)}]",
            # The paper's masks, not the demo's.
            "task.config.mask.prob=0.8",
            "task.config.mask.span_len=10",
            f"regime.num_steps={sizes.num_steps}",
            f"regime.validate_every_n_steps={every}",
            f"regime.checkpoint_every_n_steps={every}",
            f"regime.publish_metrics_every_n_steps={gcd(sizes.num_steps, 100)}",
            f"lr_scheduler.config.num_warmup_steps={max(1, sizes.num_steps // 10)}",
            f"common.seed={sizes.seed}",
            "report.enabled=false",
            *cell.options,
            *sizes.overrides,
        ],
    )

    analysis = run.with_name(f"{cell.name}.analysis")

    run_verb(
        "analyze",
        analysis,
        [
            manifest,
            f"model={run}",
            f"labels=[{','.join(cell.labels)}]",
            f"label_dir={labels}",
            f"num_clusters=[{sizes.eval_clusters}]",
            f"trials={sizes.trials}",
            f"fit_minutes={sizes.fit_minutes}",
            "abx.enabled=false",
            "cca.enabled=false",
            "plots=false",
        ],
    )

    error_rate = finetune(run, corpus, sizes) if sizes.num_finetune_steps else {}

    return {
        **read_analysis(json.loads((analysis / "analysis.json").read_text()), sizes.eval_clusters),
        **read_metrics(run / "metrics" / "valid.jsonl", cell.labels),
        **error_rate,
    }


def finetune(run: Path, corpus: Path, sizes: Sizes) -> dict[str, float]:
    """Train a recogniser on ten minutes of the corpus, and return its errors on the validation split."""
    steps = sizes.num_finetune_steps

    recogniser = run.with_name(f"{run.name}.finetune{steps}")

    run_verb(
        "finetune",
        recogniser,
        [
            f"pretrained={run}",
            f"dataset.manifest_dir={corpus}",
            f"regime.num_steps={steps}",
            f"regime.validate_every_n_steps={steps}",
            f"regime.checkpoint_every_n_steps={steps}",
            f"common.seed={sizes.seed}",
            f"regime.publish_metrics_every_n_steps={gcd(steps, 100)}",
        ],
    )

    last = json.loads((recogniser / "metrics" / "valid.jsonl").read_text().splitlines()[-1])

    return {"cer": last["Character Error Rate (CER)"], "wer": last["Word Error Rate (WER)"]}


def read_analysis(analysis: Mapping[str, Any], eval_clusters: int) -> dict[str, Any]:
    """Return PNMI of the labels, of MFCC and of every layer."""
    spaces = {name: s["units"][str(eval_clusters)] for name, s in analysis["spaces"].items()}

    layers = {name: values for name, values in spaces.items() if name != "mfcc"}

    best = max(layers, key=lambda name: layers[name]["pnmi"])

    return {
        "label_pnmi": {name: a["quality"]["pnmi"] for name, a in analysis["label_sets"].items()},
        "mfcc_pnmi": spaces["mfcc"]["pnmi"],
        "layer_pnmi": {name: values["pnmi"] for name, values in layers.items()},
        "layer_pnmi_std": {name: values["pnmi_std"] for name, values in layers.items()},
        "best_layer": best,
        "best_pnmi": layers[best]["pnmi"],
    }


def read_metrics(path: Path, labels: Sequence[str]) -> dict[str, Any]:
    """Return the accuracies of the last validation, by label set."""
    last = json.loads(path.read_text().splitlines()[-1])

    def by_label(metric: str) -> dict[str, float]:
        # The first head's metrics have no suffix.
        return {name: last[metric if nr == 0 else f"{metric} {name}"] for nr, name in enumerate(labels)}

    return {"masked_accuracy": by_label("Masked Accuracy"), "unmasked_accuracy": by_label("Unmasked Accuracy")}


def run_verb(verb: str, folder: Path, options: Sequence[str]) -> None:
    """Run a verb to its end; one that ended before is not run again.

    A verb that was interrupted is run with the same command, which goes on where it was.
    """
    done = folder.with_name(f"{folder.name}.{verb}.done")

    command = [sys.executable, "-m", "hubert_plugin", "recipe", "hubert", verb, str(folder), "--no-rich", "--config"]
    command += options

    if done.is_file() and json.loads(done.read_text()) == command[4:]:
        return

    say(f"  {verb} {folder}")

    log = folder.with_name(f"{folder.name}.{verb}.log")

    log.parent.mkdir(parents=True, exist_ok=True)

    with log.open("w") as fp:
        process = subprocess.run(command, stdout=fp, stderr=subprocess.STDOUT, check=False)

    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])

        raise SystemExit(f"{tail}\n`{' '.join(command)}` ended with {process.returncode}; its log: {log}")

    write_atomic(done, command[4:])


def corpus_options(sizes: Sizes) -> dict[str, Any]:
    """Return the options that change the corpus, not only where and how it is made."""
    return {k: v for k, v in sorted(sizes.demo.items()) if k not in ("cache_dir", "num_jobs")}


def identity(sizes: Sizes) -> str:
    """Return a folder name for what labels depend on."""
    return "-".join(["demo", *(f"{k}={v}" for k, v in corpus_options(sizes).items())])


def read_results(out: Path) -> dict[str, Any]:
    path = out / RESULTS

    return json.loads(path.read_text()) if path.is_file() else {}  # type: ignore[no-any-return]


def write_results(out: Path, results: Mapping[str, Any]) -> None:
    write_atomic(out / RESULTS, results)


def write_atomic(path: Path, content: object) -> None:
    from hubert_plugin.files import write_text_atomic

    write_text_atomic(path, json.dumps(content, indent=1) + "\n")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
