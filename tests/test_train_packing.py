"""The loss of an update does not depend on how utterances are packed into batches.

Crops and masks are drawn for (seed, epoch, utterance), so an utterance has the same ones wherever it is packed. The
sums of cross-entropies, and their gradients, are then sums over utterances. Two things do depend on the packing, as in
fairseq:

- the feature penalty: the mean over a batch's tensor, padding included, times the batch's frames (trap T11). A batch
  twice over gives the same penalty per frame, but batches of unequal utterances weigh them by samples, not by frames;
- what is cut from an utterance, with ``length: shortest`` (fairseq's), and with ``bucket`` where the shortest or the
  longest utterance changes; with ``pad`` nothing but the maximum decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from builders import NUM_UNITS, one_thread, tiny_config  # noqa: F401 - a fixture

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin import frames
from hubert_plugin.criteria.masked_cross_entropy import MaskedCrossEntropy, MaskedCrossEntropyConfig
from hubert_plugin.data.batch import HubertBatch
from hubert_plugin.data.loader import BatchLoader, LabelReader
from hubert_plugin.data.masks import MaskConfig
from hubert_plugin.data.plan import PlannedBatch
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.model import HubertModel

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = [9_000, 14_321, 14_400, 20_000, 6_543, 12_000]

PACKINGS: Sequence[Sequence[Sequence[int]]] = (
    [[0, 1, 2, 3, 4, 5]],
    [[0], [1], [2], [3], [4], [5]],
    [[5, 0], [3, 4], [2, 1]],
    [[4, 2, 3], [1, 0, 5]],
)


def create_loader(max_frames: int = 50) -> BatchLoader:
    def read(idx: int) -> np.ndarray:
        return (0.1 * np.random.default_rng(idx).standard_normal(LENGTHS[idx])).astype(np.float32)

    def units(idx: int) -> np.ndarray:
        return np.random.default_rng(100 + idx).integers(0, NUM_UNITS, 100).astype(np.int32)

    return BatchLoader(
        [f"speaker/utt{i}" for i in range(len(LENGTHS))],
        np.asarray([frames.num_frames(n) for n in LENGTHS]),
        read,
        [LabelReader(units, 50)],
        mask=MaskConfig(),
        max_frames=max_frames,
        seed=7,
    )


def load(packing: Sequence[Sequence[int]], num_frames: int | None = None, epoch: int = 3) -> list[HubertBatch]:
    loader = create_loader()

    batches = [loader.load(PlannedBatch(np.asarray(indices), num_frames), epoch) for indices in packing]

    return [b for b in batches if b is not None]


def run(
    model: HubertModel, batches: Sequence[HubertBatch], *, penalty: float = 0.0, alpha: float = 0.5
) -> tuple[float, int, dict[str, torch.Tensor]]:
    """Accumulate ``batches`` as the trainer does: sum of losses, of frames, gradients divided by frames."""
    criterion = MaskedCrossEntropy(model, model, MaskedCrossEntropyConfig(alpha=alpha, feature_penalty_weight=penalty))

    model.zero_grad()

    total, num_targets = 0.0, 0

    for batch in batches:
        loss = criterion.compute_loss(criterion.forward(batch), batch)

        loss.total.backward()

        total += float(loss.total)
        num_targets += loss.num_targets

    grads = {n: p.grad / num_targets for n, p in model.named_parameters() if p.grad is not None}

    return total, num_targets, grads


@pytest.mark.parametrize("conv_norm", ["layer", "group"])
@pytest.mark.parametrize("num_frames", [None, 19], ids=["padded", "cropped"])
def test_cross_entropy_and_its_gradients_do_not_depend_on_packing(conv_norm: str, num_frames: int | None) -> None:
    torch.manual_seed(0)

    model = create_hubert_model(tiny_config(conv_norm=conv_norm)).train()

    expected_loss, expected_targets, expected_grads = run(model, load(PACKINGS[0], num_frames))

    for packing in PACKINGS[1:]:
        loss, num_targets, grads = run(model, load(packing, num_frames))

        assert num_targets == expected_targets
        assert loss == pytest.approx(expected_loss, rel=1e-5)

        for name, grad in grads.items():
            error = float((grad - expected_grads[name]).abs().max())

            assert error <= 2e-5 + 1e-4 * float(expected_grads[name].abs().max()), name


def test_packing_does_matter_where_group_norm_counts_padding_as_fairseq_does() -> None:
    """The counter-example, so that the test above is known to be able to fail."""
    torch.manual_seed(0)

    model = create_hubert_model(tiny_config(conv_norm="group", group_norm_includes_padding=True)).train()

    one, other = (run(model, load(p))[0] for p in PACKINGS[:2])

    assert abs(one - other) > 1e-4 * abs(one)


def test_crops_and_masks_belong_to_utterance_and_epoch() -> None:
    """Trap T15."""

    def draws(packing: Sequence[Sequence[int]], epoch: int) -> dict[str, bytes]:
        return {
            name: batch.waveforms[row].numpy().tobytes() + batch.temporal_mask[row].numpy().tobytes()
            for batch in load(packing, 19, epoch)
            for row, name in enumerate(batch.ids)
        }

    expected = draws(PACKINGS[0], 3)

    for packing in PACKINGS[1:]:
        assert draws(packing, 3) == expected

    assert all(draws(PACKINGS[0], 4)[name] != value for name, value in expected.items())


def test_penalty_per_frame_is_that_of_the_batch_however_often_it_is_in_it() -> None:
    """Trap T11: the mean over the batch, times its frames; a batch twice over has the same loss per frame."""
    torch.manual_seed(0)

    model = create_hubert_model(tiny_config()).train()

    once = load([[0, 1, 2]], 19)

    twice = load([[0, 1, 2, 0, 1, 2]], 19)

    (loss_once, targets_once, grads_once), (loss_twice, targets_twice, grads_twice) = (
        run(model, batches, penalty=10.0) for batches in (once, twice)
    )

    assert targets_twice == 2 * targets_once
    assert loss_twice / targets_twice == pytest.approx(loss_once / targets_once, rel=1e-5)

    for name, grad in grads_twice.items():
        torch.testing.assert_close(grad, grads_once[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_penalty_is_ten_times_the_mean_square_per_frame() -> None:
    """On the total, never on a mean that hides a scale: minimal_hubert's penalty was thousands of times too large."""
    torch.manual_seed(0)

    model = create_hubert_model(tiny_config()).eval()

    (batch,) = load([[0, 1, 2]], 19)

    with torch.no_grad():
        features = model.encode(batch.waveforms).conv_features

    assert features is not None

    without, targets, _ = run(model, [batch], penalty=0.0, alpha=1.0)
    with_, _, _ = run(model, [batch], penalty=10.0, alpha=1.0)

    assert (with_ - without) / targets == pytest.approx(10.0 * float(features.square().mean()), rel=1e-3)
