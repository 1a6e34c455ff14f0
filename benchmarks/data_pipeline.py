"""The data pipeline: FLAC files and labels to masked batches, in seconds of audio per second of one core.

Utterances of LibriSpeech's lengths are written as FLAC files of 16 kHz and read as ``pretrain`` does: decoding, crops,
labels, masks, batches of 87.5 s. Beside it: decoding alone, which no pipeline that reads FLAC through libsndfile can
beat. What counts is the processor time of all threads, so that the figure is one core's whatever the number of workers.

    python -m benchmarks.data_pipeline [--workers N] [--json FILE]
"""

from __future__ import annotations

import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from fairseq2.gang import create_fake_gangs

from benchmarks.common import create_parser, format_range, print_table, set_up, summarize, write_json
from benchmarks.machine import describe_machine, print_machine
from hubert_plugin import frames
from hubert_plugin.audio import AudioPolicy, read_waveform
from hubert_plugin.data.labels import open_labels, write_labels
from hubert_plugin.data.loader import BatchLoader, LabelReader
from hubert_plugin.data.manifest import read_manifest, write_manifest
from hubert_plugin.data.masks import MaskConfig
from hubert_plugin.data.plan import BatchConfig, max_frames
from hubert_plugin.data.reader import HubertDataReader
from hubert_plugin.registry import LabelSetSpec

NUM_UNITS = 500

OURS, DECODING = "pipeline", "decoding alone"


def make_corpus(folder: Path, num_seconds: float, rng: np.random.Generator) -> float:
    """Write FLAC files, a manifest and labels; return their seconds.

    The lengths are drawn to be LibriSpeech's: 12.3 s on the average, most between 12 and 16 s.
    """
    rows, total = [], 0.0

    while total < num_seconds:
        seconds = float(rng.uniform(12.0, 16.5) if rng.random() < 0.75 else rng.uniform(2.0, 12.0))

        # Noise that is louder at low frequencies and comes and goes: it compresses about as well as speech.
        noise = np.cumsum(rng.standard_normal(int(seconds * frames.SAMPLE_RATE)))

        noise -= np.convolve(noise, np.full(64, 1 / 64), "same")

        envelope = np.repeat(rng.uniform(0.0, 0.03, noise.size // 1600 + 1), 1600)[: noise.size]

        rows.append((f"utt{len(rows):05}.flac", noise.size))

        path = folder / "audio" / rows[-1][0]

        path.parent.mkdir(parents=True, exist_ok=True)

        sf.write(path, (noise * envelope).clip(-1, 1), frames.SAMPLE_RATE, subtype="PCM_16")

        total += seconds

    write_manifest(folder / "train.tsv", "audio", rows)

    manifest = read_manifest(folder, "train")

    units = [rng.integers(0, NUM_UNITS, frames.num_labels(n, 50)).astype(np.int32) for n in manifest.sizes.tolist()]

    write_labels(folder, "train", LabelSetSpec("km", NUM_UNITS, 50), units, manifest, {"made_by": "benchmark"})

    return total


def make_reader(folder: Path, num_workers: int) -> HubertDataReader:
    """Return the reader that ``pretrain`` would use."""
    manifest, policy = read_manifest(folder, "train"), AudioPolicy()

    labels = open_labels(folder, "train", "km", manifest)

    batching = BatchConfig()

    loader = BatchLoader(
        manifest.ids,
        labels.num_frames(),
        lambda i: read_waveform(manifest.root, manifest.ids[i], policy, expected_samples=int(manifest.sizes[i])),
        [LabelReader(labels.__getitem__, 50)],
        mask=MaskConfig(),
        max_frames=max_frames(batching),
        seed=1,
    )

    return HubertDataReader(
        loader,
        labels.num_frames(),
        np.arange(len(manifest)),
        batching,
        create_fake_gangs(torch.device("cpu")),
        seed=1,
        shuffle=True,
        num_workers=num_workers,
    )


def read_all(reader: HubertDataReader) -> float:
    """Read an epoch; return the seconds of audio in its batches."""
    total = sum(b.waveforms.numel() for batches in reader for b in batches) / frames.SAMPLE_RATE

    reader.reset()

    return total


def decode_all(folder: Path) -> float:
    manifest = read_manifest(folder, "train")

    return sum(len(sf.read(manifest.root / i, dtype="float32")[0]) for i in manifest.ids) / frames.SAMPLE_RATE


def measure(call: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of audio per second of processor time, and per second."""
    start, cpu_start = time.perf_counter(), time.process_time()

    seconds = call()

    return seconds / (time.process_time() - cpu_start), seconds / (time.perf_counter() - start)


def run(args: Namespace, folder: Path) -> None:
    num_seconds = make_corpus(folder, 120.0 if args.quick else 1800.0, np.random.default_rng(args.seed))

    reader = make_reader(folder, args.workers)

    contenders: dict[str, Callable[[], float]] = {
        OURS: lambda: read_all(reader),
        DECODING: lambda: decode_all(folder),
    }

    for call in contenders.values():
        call()

    results: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}

    for _ in range(args.rounds or (1 if args.quick else 5)):
        for name, call in contenders.items():
            results[name].append(measure(call))

    machine = describe_machine(torch.device("cpu"))

    print_machine(machine)

    print_table(
        ["", "audio-s per core-second", f"audio-s per second ({args.workers} workers)"],
        [
            [name, *(format_range(summarize([v[i] for v in values]), 4) for i in (0, 1))]
            for name, values in results.items()
        ],
    )

    write_json(args.json, {"machine": machine, "audio_seconds": num_seconds, "results": results})


def main() -> None:
    parser = create_parser(__doc__)

    parser.add_argument("--workers", type=int, default=1, help="threads that make batches")

    args = parser.parse_args()

    set_up(args)

    with tempfile.TemporaryDirectory(prefix="hubert-benchmark-") as folder:
        run(args, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
