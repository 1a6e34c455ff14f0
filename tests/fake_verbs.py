"""Stands in for the verbs of a refinement, in milliseconds: ``python fake_verbs.py recipe hubert VERB OUT …``.

Every verb writes what its namesake writes, with contents that follow from what it reads and from its options, so that a
refinement of these can be held against another one. Records of it hold the time, as real ones hold versions. A training
has checkpoints, goes on from the last one, and can be killed.

What is run is added to the file that ``FAKE_LOG`` names. ``FAKE_FAIL=round1/label:2`` lets a step fail with that code,
after it has printed ``FAKE_PRINT``; ``FAKE_DELAY`` is how many seconds an update takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

HOW = ("manifest_dir", "unit_model", "model", "label_dir", "init.source", "pretrained")
"""Options that are places, as their last parts."""

COUNTING = ("features.name", "features.config", "units.name", "units.config", "seed")
"""The options of ``cluster`` that count: with others, it gives the same result."""

stopping = False


def digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def content(place: str) -> str:
    """What lies at a place: a model is its last checkpoint, labels are their lines."""
    path = Path(place)

    if not path.exists():
        return place

    if path.is_file():
        return path.read_text()

    if (path / "checkpoints").is_dir():
        steps = sorted(path.glob("checkpoints/step_*/model/pp_00/weights.pt"), key=lambda p: int(p.parts[-4][5:]))

        return steps[-1].read_text()

    if (path / "train.tsv").is_file():
        return digest(*(p.read_text().partition("\n")[2] for p in sorted(path.glob("*.tsv"))))

    return digest(*(p.read_text() for p in sorted(path.glob("*.km"))))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    tmp = path.with_name(f".{path.name}.tmp")
    tmp.write_text(text)
    tmp.rename(path)


def train(out: Path, options: dict[str, str], seed: str) -> None:
    num_steps = int(options.get("regime.num_steps", "4"))

    folder = out / "checkpoints"

    write(folder / "model.yaml", "model_family: fake\n")

    for tmp in folder.glob("*.tmp"):
        shutil.rmtree(tmp)

    done = [int(p.name[5:]) for p in folder.glob("step_*") if (p / "trainer").is_dir()]

    for step in range(max(done, default=0) + 1, num_steps + 1):
        time.sleep(float(os.environ.get("FAKE_DELAY", "0")))

        if stopping:
            return

        tmp = folder / f"step_{step}.tmp"

        write(tmp / "model/pp_00/weights.pt", digest(seed, step) + "\n")
        write(tmp / "trainer/state.pt", str(step))
        write(tmp / "optimizer/state.pt", str(step))

        tmp.rename(folder / f"step_{step}")

        for old in range(1, step - 1):  # the last two are kept
            shutil.rmtree(folder / f"step_{old}", ignore_errors=True)

    record = {"Step": num_steps, "Masked Accuracy": 0.5, "Loss": 3.0}

    write(out / "metrics/valid.jsonl", json.dumps(record) + "\n")
    write(out / "report.json", json.dumps({"masked_accuracy": 0.5}) + "\n")


def analyze(out: Path, options: dict[str, str], seed: str) -> None:
    sizes = options.get("num_clusters", "[100]").strip("[]").split(",")

    def value(*parts: object) -> float:
        return int(digest(seed, *parts)[:6], 16) / (1 << 24)

    def measures(space: str, k: str) -> dict[str, float]:
        measured = {"pnmi": value(space, k), "phone_purity": value(k, space)}

        return {**measured, "criterion": value(space, k, 1)} if options.get("criterion") == "true" else measured

    spaces = {
        space: {"units": {k.strip(): measures(space, k) for k in sizes}} for space in ("mfcc", "L1", "L2", "L3", "L4")
    }

    labels = {"km": {"quality": {"pnmi": value("km"), "num_units": int(sizes[0])}}}

    write(out / "analysis.json", json.dumps({"corpus": {}, "label_sets": labels, "spaces": spaces}))


def report(out: Path) -> None:
    """Everything that the steps left, without what differs between runs."""
    files = {
        str(p.relative_to(out)): p.read_text()
        for p in sorted(out.glob("round*/*/**/*"))
        if p.is_file() and p.name in ("units.safetensors", "train.km", "valid.km", "weights.pt", "analysis.json")
    }

    last = {n: t for n, t in files.items() if "step_" not in n or Path(n).parts[3] == last_step(out, n)}

    write(out / "report/report.json", json.dumps(last, indent=1))
    write(out / "report/index.html", "<html></html>\n")


def last_step(out: Path, name: str) -> str:
    folder = out / Path(name).parents[3]

    return max((p.name for p in folder.glob("step_*")), key=lambda n: int(n.removesuffix(".tmp")[5:]))


def main() -> int:
    def stop(*_: object) -> None:
        global stopping
        stopping = True

    signal.signal(signal.SIGUSR1, stop)

    verb, place, *rest = sys.argv[3:]

    # Under SLURM, fairseq2 knows its rank by SLURM's variable; two that took themselves for the first would both write.
    out, rank = Path(place), int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0"))

    if log := os.environ.get("FAKE_LOG"):
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

        with open(log, "a") as fp:
            fp.write(json.dumps([place, rest, {n: os.environ[n] for n in names if n in os.environ}]) + "\n")

    if verb == "iterate":
        if "--report" in rest and rank == 0:
            report(out)

        return 0

    name, _, code = os.environ.get("FAKE_FAIL", "").partition(":")

    if name == place:
        print(
            os.environ.get("FAKE_PRINT", ""),
            "the first line\nfairseq2: error: 'a.wav' is not as it should be.",
            sep="",
            flush=True,
        )

        return int(code)

    options = dict(item.split("=", 1) for item in rest if "=" in item)

    preset = rest[rest.index("--preset") + 1] if "--preset" in rest else ""

    reads = {k: content(v) for k, v in options.items() if k.rpartition(".")[2] in HOW or k == "init.source"}

    settings = {k: v for k, v in options.items() if k not in reads}

    # The model of `hubert_layer` stands inside of another option.
    if "features.config" in settings and "model:" in settings["features.config"]:
        settings["features.config"] = digest(
            *(content(p.partition(":")[2].strip()) for p in settings["features.config"].strip("{}").split(","))
        )

    seed = digest(verb, preset, sorted(reads.items()), sorted(settings.items()))

    if rank > 0:
        return 0

    now = json.dumps({"made": time.time_ns()})

    match verb:
        case "cluster":
            time.sleep(float(os.environ.get("FAKE_DELAY", "0")))
            write(out / "units.safetensors", f"{digest(sorted(reads.items()), *(settings.get(k) for k in COUNTING))}\n")
            write(out / "units.json", now)
        case "label":
            for split in ("train", "valid"):
                time.sleep(float(os.environ.get("FAKE_DELAY", "0")))
                text, path = f"{digest(reads['unit_model'], reads['manifest_dir'], split)}\n", out / f"{split}.km"

                if path.exists() and path.read_text() != text:
                    print(f"fairseq2: error: '{out}' already holds labels of another making.", flush=True)

                    return 2

                write(path, text)
                write(out / f"{split}.km.json", now)
        case "pretrain" | "finetune":
            train(out, options, seed)
        case "analyze":
            analyze(out, options, seed)
        case "manifest":
            for split in ("train", "valid"):
                write(out / f"{split}.tsv", f"/audio\n{digest(seed, split)}.wav\t16000\n")

    return 0


if __name__ == "__main__":
    sys.exit(main())
