"""A small picture as a ``data:`` address, for spectrograms."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

_STOPS: Final = ((16, 19, 34), (38, 57, 104), (37, 110, 132), (92, 166, 130), (214, 210, 120), (253, 246, 213))
"""Colours from silence to the loudest: their lightness rises evenly, so the picture also reads without colour."""


def spectrogram_address(levels: Sequence[Sequence[int]]) -> str:
    """Return a picture of a spectrogram as a ``data:`` address: time to the right, low bands at the bottom.

    :param levels: Grey levels from 0 to 255. *Shape:* (frames, bands).
    """
    grey = np.clip(np.asarray(levels, np.int64), 0, 255).astype(np.uint8).T[::-1]

    return f"data:image/png;base64,{base64.b64encode(encode_png(grey, _palette())).decode('ascii')}"


def encode_png(indices: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """Return a PNG file (ISO/IEC 15948) of colour type 3.

    :param indices: Which colour each pixel has. *Shape:* (rows, columns).
    :param palette: Red, green and blue. *Shape:* (up to 256, 3).
    """
    rows, columns = indices.shape

    # Each row begins with the number of its filter: 0, none.
    raw = np.pad(indices, ((0, 0), (1, 0))).tobytes()

    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette.tobytes()),
            _chunk(b"IDAT", zlib.compress(raw, 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _palette() -> NDArray[np.uint8]:
    stops = np.array(_STOPS, np.float64)

    places = np.linspace(0, 255, len(stops))

    channels = [np.interp(np.arange(256), places, stops[:, i]) for i in range(3)]

    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)
