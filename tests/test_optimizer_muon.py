"""The optimizer ``muon`` against PyTorch's own Muon and AdamW, and against singular values."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from builders import tiny_config
from processes import assert_answer, command_server
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn import Module, Parameter, Sequential
from torch.optim import AdamW, Muon

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin.errors import ConfigError
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.tasks.muon import MuonAdamW, MuonConfig, create_muon, orthogonalize


def make_params(seed: int = 0) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)

    return [Parameter(torch.randn(shape, generator=generator)) for shape in ((24, 8), (8, 24), (16,), (4, 5))]


def set_gradients(params: list[Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)

    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (3, 200)])
def test_singular_values_come_close_to_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    left, _, right = torch.linalg.svd(matrix, full_matrices=False)

    rotated = left.mT @ orthogonalize(matrix) @ right.mT

    # Muon's coefficients give up exactness for speed: values between 0.7 and 1.2.
    assert ((rotated.diagonal() > 0.65) & (rotated.diagonal() < 1.25)).all()

    off_diagonal = rotated - torch.diag(rotated.diagonal())

    assert float(off_diagonal.abs().max()) < 0.05


def test_matrices_are_updated_as_by_pytorchs_muon_and_the_rest_as_by_adamw() -> None:
    ours, theirs = make_params(), make_params()

    config = MuonConfig()

    optimizer = MuonAdamW(ours[:2], ours[2:], config)

    muon = Muon(theirs[:2], lr=config.conv_lr, weight_decay=config.weight_decay, momentum=config.momentum)

    adamw = AdamW(theirs[2:], lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)

    for step in range(8):
        set_gradients(ours, step)
        set_gradients(theirs, step)

        gradients = [p.grad for p in ours]

        optimizer.step()

        # Norms are logged after the update, too.
        assert all(p.grad is grad for p, grad in zip(ours, gradients, strict=True))

        muon.step()
        adamw.step()

    start = make_params()

    for idx in range(2):
        moved, expected = ours[idx] - start[idx], theirs[idx] - start[idx]

        # Both iterate in bfloat16, rounded at other places.
        assert float((moved - expected).detach().norm() / expected.detach().norm()) < 0.02

    for idx in (2, 3):
        torch.testing.assert_close(ours[idx], theirs[idx], rtol=1e-6, atol=1e-7)


def test_an_optimizer_that_is_loaded_goes_on_alike() -> None:
    params = make_params()

    optimizer = MuonAdamW(params[:2], params[2:], MuonConfig())

    for step in range(3):
        set_gradients(params, step)

        optimizer.step()

    other_params = copy.deepcopy(params)

    other = MuonAdamW(other_params[:2], other_params[2:], MuonConfig())

    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    for step in range(3, 6):
        for some_params, some in ((params, optimizer), (other_params, other)):
            set_gradients(some_params, step)

            some.step()

    for param, expected in zip(other_params, params, strict=True):
        assert torch.equal(param, expected)


def test_the_matrices_are_the_convolutions_after_the_first() -> None:
    model = create_hubert_model(tiny_config())

    groups = {group["is_matrices"]: group["params"] for group in create_muon(model, MuonConfig()).param_groups}

    names = {id(p): name for name, p in model.named_parameters()}

    extractor = "encoder_frontend.feature_extractor.layers"

    assert [names[id(p)] for p in groups[True]] == [f"{extractor}.{i}.conv.weight" for i in range(1, 7)]

    assert len(groups[True]) + len(groups[False]) == len(names)


def test_frozen_convolutions_leave_adamw_alone() -> None:
    model = create_hubert_model(tiny_config())

    for param in model.encoder_frontend.feature_extractor.parameters():
        param.requires_grad_(False)

    assert [group["is_matrices"] for group in create_muon(model, MuonConfig()).param_groups] == [False]


@pytest.mark.parametrize(
    ("key", "name", "nearest"), [("optimizer", "moun", "muon"), ("lr_scheduler", "tri_stag", "tri_stage")]
)
def test_an_unknown_name_is_answered_with_the_nearest(key: str, name: str, nearest: str, tmp_path: Path) -> None:
    verb = "pretrain" if key == "optimizer" else "finetune"

    run = command_server().run("recipe", "hubert", verb, str(tmp_path), "--no-rich", "--config", f"{key}.name={name}")

    assert_answer(run, [f"'{name}'", f"'{nearest}'"])


def test_the_first_version_of_fsdp_is_refused_too() -> None:
    """It wants an accelerator: here stands what it leaves to be seen, a module around plain parameters."""
    wrapper = FullyShardedDataParallel.__new__(FullyShardedDataParallel)

    Module.__init__(wrapper)

    wrapper._modules["_fsdp_wrapped_module"] = create_hubert_model(tiny_config())

    with pytest.raises(ConfigError, match="needs whole matrices"):
        create_muon(Sequential(wrapper), MuonConfig())


def test_an_update_that_overflows_in_float16_changes_nothing() -> None:
    params = make_params()

    optimizer = MuonAdamW(params[:2], params[2:], MuonConfig())

    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def update(step: int, *, overflow: bool) -> None:
        set_gradients(params, step)

        for param in params:
            assert param.grad is not None

            param.grad *= scaler.get_scale()

        if overflow:
            params[0].grad[0, 0] = torch.inf  # type: ignore[index]

        # The scaler wants to have scaled something.
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()

    before = copy.deepcopy(params)

    update(0, overflow=True)

    for param, expected in zip(params, before, strict=True):
        assert torch.equal(param, expected)

    # What is not scaled gives the same updates as what is.
    update(1, overflow=False)

    plain = MuonAdamW(before[:2], before[2:], MuonConfig())

    set_gradients(before, 1)

    plain.step()

    for param, expected in zip(params, before, strict=True):
        torch.testing.assert_close(param, expected)


def test_zero_gradients_are_no_numbers_out_of_nothing() -> None:
    assert torch.equal(orthogonalize(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_a_learning_rate_below_zero_is_named() -> None:
    errors = str(MuonConfig(conv_lr=-1.0, momentum=1.0).validate())

    assert "`conv_lr` must not be negative" in errors and "`momentum`" in errors
