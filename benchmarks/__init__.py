"""Measurements: ours and the peers that pip installs, alternating in one process. See README.md."""

# Before anything imports fairseq2: it makes fairseq2's native package loadable.
import hubert_plugin  # noqa: F401
