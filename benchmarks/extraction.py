"""Features of one layer of ``base`` for waveforms of mixed lengths.

Ours (``HubertModel.extract_features``: batches of similar length, early exit) against torchaudio and transformers with
the same weights, and the same outputs. In ``base``, a group normalisation runs over time, so that peers give an
utterance other features in a padded batch than alone (FACTS, trap T4): they are called as they must be for equal
outputs, one waveform at a time. torchaudio stops after the layer (``num_layers``); transformers has no early exit,
unless ``--cut`` takes the layers behind it away. ``--padded`` adds the peers with all waveforms in one padded batch:
what is often done, with how far off its outputs are.

    python -m benchmarks.extraction [--device cuda] [--dtype both] [--json FILE]
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from benchmarks.common import (
    DTYPES,
    alternate,
    create_parser,
    format_range,
    print_table,
    ratios,
    relative_error,
    set_up,
    summarize,
    write_json,
)
from benchmarks.machine import describe_machine, format_limit, matmul_limit, print_machine
from benchmarks.step import choose_dtypes, create_config
from hubert_plugin import frames
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.flops import count_forward_flops
from hubert_plugin.models.interop.huggingface import export_huggingface_config, export_huggingface_state_dict
from hubert_plugin.models.interop.torchaudio import export_torchaudio_kwargs, export_torchaudio_state_dict

Extract = Callable[[], list[Tensor]]
"""Returns the features of each waveform. *Shape of each:* (T, M)."""


def create_waveforms(seconds: float, seed: int, longest: float) -> list[NDArray[np.float32]]:
    """Return noise of mixed lengths, uniform between 2 s and ``longest`` as in read speech, ``seconds`` in all."""
    rng = np.random.default_rng(seed)

    waveforms: list[NDArray[np.float32]] = []

    total = 0.0

    while total < seconds:
        length = float(rng.uniform(min(2.0, longest / 2), longest))

        waveforms.append((0.1 * rng.standard_normal(round(length * frames.SAMPLE_RATE))).astype(np.float32))

        total += length

    return waveforms


def create_ours(config: HubertConfig, seed: int) -> Module:
    torch.manual_seed(seed)

    return create_hubert_model(config).eval()


def create_torchaudio(ours: Module, config: HubertConfig) -> Module:
    from torchaudio.models import wav2vec2_model

    model = wav2vec2_model(**export_torchaudio_kwargs(config))

    model.load_state_dict(export_torchaudio_state_dict(ours.state_dict(), config))

    return model.eval()


def create_transformers(ours: Module, config: HubertConfig, num_layers: int | None) -> Module:
    from transformers import HubertConfig as PeerConfig
    from transformers import HubertModel as PeerModel

    # `sdpa` is the fastest attention that runs everywhere.
    model = PeerModel._from_config(PeerConfig(**export_huggingface_config(config)), attn_implementation="sdpa")

    model.load_state_dict(export_huggingface_state_dict(ours.state_dict(), config))

    if num_layers is not None:
        model.encoder.layers = model.encoder.layers[:num_layers]

    return model.eval()


def create_contenders(
    args: Namespace, config: HubertConfig, waveforms: list[NDArray[np.float32]], dtype: str, device: torch.device
) -> tuple[dict[str, Extract], set[str]]:
    """Return the contenders, and the names of those whose outputs are others by design."""
    layer = args.layer

    ours = create_ours(config, args.seed)

    peers: dict[str, Any] = {}

    if "torchaudio" in args.peers:
        torchaudio = create_torchaudio(ours, config).to(device, DTYPES[dtype])

        peers["torchaudio"] = lambda batch, lengths: torchaudio.extract_features(batch, lengths, num_layers=layer)[0][
            -1
        ]

    if "transformers" in args.peers and find_spec("transformers"):
        transformers = create_transformers(ours, config, layer if args.cut else None).to(device, DTYPES[dtype])

        def call_transformers(batch: Tensor, lengths: Tensor | None) -> Tensor:
            if args.cut:
                return transformers(batch).last_hidden_state  # type: ignore[no-any-return]

            return transformers(batch, output_hidden_states=True).hidden_states[layer]  # type: ignore[no-any-return]

        peers["transformers"] = call_transformers

    ours = ours.to(device, DTYPES[dtype])

    # Copying to the device is part of the work, for all.
    def prepare(waveform: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(waveform).to(device, DTYPES[dtype])

    def call_ours() -> list[Tensor]:
        return ours.extract_features(waveforms, layer, max_batch_seconds=args.batch_seconds)  # type: ignore[operator,no-any-return]

    def alone(call: Any) -> Extract:
        @torch.inference_mode()
        def extract() -> list[Tensor]:
            return [call(prepare(w).unsqueeze(0), None)[0] for w in waveforms]

        return extract

    def padded(call: Any) -> Extract:
        lengths = [len(w) for w in waveforms]

        @torch.inference_mode()
        def extract() -> list[Tensor]:
            batch = torch.zeros(len(waveforms), max(lengths), device=device, dtype=DTYPES[dtype])

            for row, waveform in zip(batch, waveforms, strict=True):
                row[: len(waveform)] = prepare(waveform)

            output = call(batch, torch.tensor(lengths, device=device))

            return [output[i, : frames.num_frames(n)] for i, n in enumerate(lengths)]

        return extract

    contenders = {"ours": call_ours, **{name: alone(call) for name, call in peers.items()}}

    others = {f"{name}, padded": padded(call) for name, call in peers.items()} if args.padded else {}

    return {**contenders, **others}, set(others)


def main() -> None:
    parser = create_parser(__doc__)

    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--seconds", type=float, help="audio in all (default: 60 on the CPU, 1,200 on CUDA)")
    parser.add_argument("--longest", type=float, default=16.0, help="the longest waveform, in seconds")
    parser.add_argument("--batch-seconds", type=float, help="our batches (default: 60 on the CPU, 240 on CUDA)")
    parser.add_argument(
        "--peers", nargs="*", choices=("torchaudio", "transformers"), default=["torchaudio", "transformers"]
    )
    parser.add_argument("--cut", action="store_true", help="take the layers behind --layer away from transformers")
    parser.add_argument("--padded", action="store_true", help="add the peers with one padded batch of all")

    args = parser.parse_args()

    device = set_up(args)

    if args.quick:
        args.seconds, args.longest, args.layer = 4.0, 1.5, 1

    args.seconds = args.seconds or (1200.0 if device.type == "cuda" else 60.0)
    args.batch_seconds = args.batch_seconds or (240.0 if device.type == "cuda" else 60.0)

    config = create_config("quick" if args.quick else "base", 1, dropout=False)

    config.heads = []

    waveforms = create_waveforms(args.seconds, args.seed, args.longest)

    seconds = sum(map(len, waveforms)) / frames.SAMPLE_RATE

    result: dict[str, Any] = {
        "machine": describe_machine(device),
        "limits": {},
        "equality": {},
        "times": {},
        "ratios": {},
    }

    print_machine(result["machine"])

    print(f"layer {args.layer} of {len(waveforms)} waveforms, {seconds:.1f} s of audio, up to {args.longest:g} s each")

    reference: list[Tensor] | None = None

    rows = []

    # Full precision first: its outputs are what all others are compared with.
    dtypes = sorted(choose_dtypes(args, device), key=lambda d: d != "fp32")

    for dtype in dtypes:
        limit = result["limits"][dtype] = matmul_limit(
            device, dtype, [(3000, config.model_dim, config.ffn_dim)], seconds=0.0 if args.quick else 1.0
        )

        print(format_limit(dtype, limit))

        contenders, unequal = create_contenders(args, config, waveforms, dtype, device)

        for name, extract in contenders.items():
            outputs = [o.float().cpu() for o in extract()]

            if reference is None:
                reference = outputs

            result["equality"][f"{name} {dtype}"] = relative_error(torch.cat(outputs), torch.cat(reference))

        times = alternate(
            contenders,
            device,
            rounds=args.rounds or (1 if args.quick else 5),
            warmup=args.warmup or 1,
            inner=args.inner or 1,
            report=lambda text: print(text, file=sys.stderr, flush=True),
        )

        rows += report(result, times, unequal, dtype, seconds, forward_flops(config, waveforms, args.layer))

    print_table(["contender", "s: median (min-max)", "audio-s/s", "share of matmul limit", "off ours in fp32"], rows)

    for name, ratio in result["ratios"].items():
        print(f"{name}: {format_range(ratio)}")

    result["machine"]["load_average_at_end"] = describe_machine(device)["load_average"]

    write_json(args.json, result)


def forward_flops(config: HubertConfig, waveforms: list[NDArray[np.float32]], layer: int) -> float:
    """Return the operations of one pass up to ``layer``, without padding."""
    config = HubertConfig(**{**vars(config), "num_layers": layer})

    return sum(sum(count_forward_flops(config, len(w), 0).values()) for w in waveforms)


def report(
    result: dict[str, Any], times: dict[str, list[float]], unequal: set[str], dtype: str, seconds: float, flops: float
) -> list[list[str]]:
    rows = []

    for name, values in times.items():
        key = f"{name} {dtype}"

        summary = summarize(values)

        result["times"][key] = values

        share = flops / summary["median"] / result["limits"][dtype]["flops"]

        rows.append(
            [
                key,
                format_range(summary),
                f"{seconds / summary['median']:.4g}",
                f"{share:.0%}",
                f"{result['equality'][key]:.1e}",
            ]
        )

    peers = [name for name in times if name != "ours" and name not in unequal]

    if peers:
        fastest = min(peers, key=lambda name: summarize(times[name])["median"])

        result["ratios"][f"ours {dtype} is faster than the faster peer, {fastest}, by the factor"] = ratios(
            times[fastest], times["ours"]
        )

    return rows


if __name__ == "__main__":
    main()
