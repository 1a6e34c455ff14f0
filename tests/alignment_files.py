"""Files of alignments, and manifests that they go with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hubert_plugin import frames
from hubert_plugin.analysis.alignments import Alignment, AlignmentConfig, read_alignments
from hubert_plugin.data.manifest import Manifest

SECOND = frames.SAMPLE_RATE

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1
            text = "say ""2 3"" 4"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1
        points: size = 1
        points [1]:
            number = 0.5
            mark = "x"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.5
            text = "AH0"
        intervals [3]:
            xmin = 0.5
            xmax = 1
            text = "ŋ"
""".replace("\n", " \n")  # Praat ends its lines so

SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1
<exists>
3
"IntervalTier"
"words"
0
1
1
0
1
"say ""2 3"" 4"
"TextTier"
"clicks"
0
1
1
0.5
"x"
"IntervalTier"
"phones"
0
1
3
0
0.25
""
0.25
0.5
"AH0"
0.5
1
"ŋ"
"""


def make_manifest(**sizes: float) -> Manifest:
    """A manifest of ``name.wav`` files in a folder, with their seconds."""
    ids = [f"speaker/{name}.wav" for name in sizes]

    samples = np.array([round(s * SECOND) for s in sizes.values()], np.int64)

    return Manifest(Path("corpus/valid.tsv"), "valid", Path("corpus"), ids, samples)


def read(path: Path, manifest: Manifest, **options: object) -> Alignment:
    alignment = read_alignments(AlignmentConfig(path=path, **options), manifest)  # type: ignore[arg-type]

    assert alignment is not None

    return alignment


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    return path
