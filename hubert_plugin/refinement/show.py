"""Numbers for people."""

from __future__ import annotations


def format_bytes(size: float) -> str:
    """Return a size in bytes, kB, MB, GB or TB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"

        size /= 1000

    return f"{size:.1f} TB"


def format_seconds(seconds: float) -> str:
    """Return a time in its two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"

    total = round(seconds)

    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60

    if days:
        return f"{days} d {hours} h"

    if hours:
        return f"{hours} h {minutes} min"

    return f"{minutes} min {total % 60} s" if minutes else f"{total} s"


def format_flops(flops: float) -> str:
    """Return a number of operations with its prefix."""
    for unit in ("GFLOP", "TFLOP", "PFLOP"):
        if flops < 1e12:
            return f"{flops / 1e9:.3g} {unit}"

        flops /= 1000

    return f"{flops / 1e9:.3g} EFLOP"
