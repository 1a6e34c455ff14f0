"""What pretraining and a language model are worth: error rates on the demo corpus, by the commands that users run.

    python -m benchmarks.recognition --pretrained runs/demo --out runs/recognition

Fine-tunes with 10 and 60 minutes of labels, from the pretrained model and from random parameters, with the same number
of updates; transcribes the held-out speakers greedily and with the demo's language model; prints error rates with
confidence intervals. Random parameters have their convolutions trained, which pretrained ones do not: frozen random
convolutions would be no rival.

What is finished in ``--out`` stays: the same command goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GREEDY, LM = "greedy", "3-gram"

QUICK_DEMO = "{train_minutes: 0.5, valid_minutes: 0.2, num_speakers: 4, level: clean}"


def main() -> int:
    args = parse_args()

    rows = []

    for minutes in args.minutes:
        for start in starts(args):
            run = finetune(args, minutes, start)

            for decoder in (GREEDY, LM):
                row = {"minutes": minutes, "start": start, "decoder": decoder, **measure(args, run, decoder)}

                rows.append(row)

                print(describe(row), flush=True)

    print()
    print(table(rows))

    for line in comparisons(rows):
        print(line)

    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), "rows": rows}, indent=2, default=str) + "\n")

    return 0


def parse_args() -> Namespace:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)

    parser.add_argument(
        "--pretrained", type=Path, help="a run of `pretrain` on the demo corpus; none: random ones only"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of all runs")
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0, 60.0], help="minutes of labelled speech")
    parser.add_argument("--updates", type=int, help="updates of each fine-tuning; default: the recipe's")
    parser.add_argument("--beam", type=int, default=500, help="hypotheses kept by beam search")
    parser.add_argument("--tune", type=int, default=0, help="trials of a search for weights, on a part of training")
    parser.add_argument("--config", nargs="*", default=[], help="further settings of `finetune`")
    parser.add_argument("--quick", action="store_true", help="a tiny corpus and few updates: only to see that it runs")
    parser.add_argument("--json", type=Path, help="where to write all numbers")

    args = parser.parse_args()

    if args.quick:
        args.minutes, args.updates, args.beam = [0.2], 2, 20

    return args


def starts(args: Namespace) -> list[str]:
    return ["random"] if args.pretrained is None else ["pretrained", "random"]


def finetune(args: Namespace, minutes: float, start: str) -> Path:
    """Fine-tune, or go on with it; return the folder of the run."""
    out: Path = args.out / f"{start}_{minutes:g}min"

    settings = [f"dataset.train_minutes={minutes}"]

    if start == "pretrained":
        settings.append(f"pretrained={args.pretrained.absolute()}")
    else:
        settings.append("freezing.convolutions=false")

    if args.updates:
        settings.append(f"regime.num_steps={args.updates}")

    if args.quick:
        settings.append(f"dataset.demo={QUICK_DEMO}")

        settings += [f"regime.{kind}_every_n_steps=2" for kind in ("validate", "checkpoint", "publish_metrics")]

    if not (out / "finished").exists():
        run("finetune", out, *settings, *args.config)

        (out / "finished").touch()

    return out


def measure(args: Namespace, model: Path, decoder: str) -> dict[str, Any]:
    """Transcribe the held-out speakers and evaluate; return the rates."""
    out = model.with_name(f"{model.name}_{decoder}")

    settings = [f"model={model.absolute()}"]

    if decoder == LM:
        settings += ["decoder.name=beam", "decoder.lm=demo", f"decoder.beam={args.beam}"]

        if args.tune:
            settings += [f"tune.trials={args.tune}", f"tune.input={tuning_split(args, model)}"]

    if args.quick:
        settings.append(f"demo={QUICK_DEMO}")

    if not (out / "transcribe.json").exists():
        run("transcribe", out, *settings)

    run("evaluate", out / "evaluation", f"hypotheses={out.absolute()}")

    evaluation = json.loads((out / "evaluation" / "evaluation.json").read_text())

    return {
        "cer": evaluation["cer"],
        "wer": evaluation["wer"],
        "real_time_factor": evaluation["real_time_factor"],
    }


def tuning_split(args: Namespace, model: Path) -> Path:
    """Write a split of 200 utterances of the training speakers: weights are not to be tuned on what is measured."""
    from hubert_plugin.data.manifest import read_manifest, write_manifest
    from hubert_plugin.demo import DemoCorpusConfig, ensure_demo_corpus

    options = {"train_minutes": 0.5, "valid_minutes": 0.2, "num_speakers": 4, "level": "clean"} if args.quick else {}

    corpus = ensure_demo_corpus(DemoCorpusConfig(**options))  # type: ignore[arg-type]

    manifest = read_manifest(corpus, "train")

    words = (corpus / "train.wrd").read_text().splitlines()

    picked = range(0, len(manifest), max(1, len(manifest) // 200))

    folder: Path = args.out / "tuning"

    rows = [(manifest.ids[i], int(manifest.sizes[i])) for i in picked]

    write_manifest(folder / "train.tsv", manifest.root, rows)

    (folder / "train.wrd").write_text("".join(f"{words[i]}\n" for i in picked))

    return folder / "train.tsv"


def run(verb: str, out: Path, *settings: str) -> None:
    """Run a command as a user does."""
    command = [sys.executable, "-m", "hubert_plugin", "recipe", "hubert", verb, str(out), "--no-rich", "--config"]

    start = time.monotonic()

    done = subprocess.run([*command, *settings], capture_output=True, text=True)

    if done.returncode != 0:
        raise SystemExit(f"`{verb}` failed with code {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")

    print(f"  {verb} {out.name}: {time.monotonic() - start:.0f} s", flush=True)


def describe(row: dict[str, Any]) -> str:
    return f"{row['minutes']:g} min, {row['start']}, {row['decoder']}: CER {rate(row['cer'])}, WER {rate(row['wer'])}"


def rate(result: dict[str, Any]) -> str:
    return f"{100 * result['rate']:.1f} % ({100 * result['low']:.1f}-{100 * result['high']:.1f})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| labels | start | decoder | CER (95 %) | WER (95 %) | RTF |", "|---|---|---|---|---|---|"]

    lines += [
        f"| {r['minutes']:g} min | {r['start']} | {r['decoder']} | {rate(r['cer'])} | {rate(r['wer'])} | "
        f"{r['real_time_factor']:.4f} |"
        for r in rows
    ]

    return "\n".join(lines)


def comparisons(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what pretraining and the language model change, relative to what there was without."""
    by_key = {(r["minutes"], r["start"], r["decoder"]): r for r in rows}

    def change(measure: str, after: tuple[float, str, str], before: tuple[float, str, str]) -> float | None:
        if after not in by_key or before not in by_key or not by_key[before][measure]["rate"]:
            return None

        return 100 * (1 - by_key[after][measure]["rate"] / by_key[before][measure]["rate"])

    lines = []

    for minutes in dict.fromkeys(r["minutes"] for r in rows):
        gain = change("cer", (minutes, "pretrained", GREEDY), (minutes, "random", GREEDY))

        if gain is not None:
            lines.append(f"{minutes:g} min: pretraining lowers the greedy CER by {gain:.1f} % (relative).")

        for start in ("pretrained", "random"):
            gain = change("wer", (minutes, start, LM), (minutes, start, GREEDY))

            if gain is not None:
                lines.append(f"{minutes:g} min, {start}: the language model lowers the WER by {gain:.1f} % (relative).")

    return lines


if __name__ == "__main__":
    raise SystemExit(main())
