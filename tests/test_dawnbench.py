"""`dawnbench` against what its authors published, and its parts together on a small scale."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import velodrome as vd
from velodrome.cli import main
from velodrome.config import check, override
from velodrome.errors import EXIT_BAD_INPUT, EXIT_DONE
from velodrome.models.build import build_model
from velodrome.training.optim import make_optimizer, set_lr
from velodrome.training.schedule import make_schedule, resolve_lr

# Of the entry: 50,000 images in batches of 256 on each of eight devices, whole batches only.
STEPS_PER_EPOCH = 50_000 // 8 // 256
DEVICES, BATCH = 8, 256


def published_lr(step: int) -> float:
    """The learning rate of a step from 1, for a loss that is the sum over the batch of one device."""
    knots = np.array([0.0, 18 / 5, 18 - 2]) * STEPS_PER_EPOCH
    return float(np.interp(step, knots, [0.0, 1.5 / BATCH, 0.15 / BATCH]))


def test_steps_and_batches_are_those_of_eight_devices() -> None:
    train = vd.recipes.dawnbench().train
    assert train.batch_size == DEVICES * BATCH
    assert 50_000 // train.batch_size == STEPS_PER_EPOCH
    assert train.drop_last
    # Sixteen groups on each device.
    assert vd.recipes.dawnbench().model.ghost_batch == BATCH // 16


def test_learning_rates_are_those_published() -> None:
    """Ours are for the mean over the batch; theirs for the mean over devices of the sums over theirs."""
    config = vd.recipes.dawnbench()
    lr_at = make_schedule(resolve_lr(config.train), STEPS_PER_EPOCH)
    steps = range(18 * STEPS_PER_EPOCH)
    ours = [lr_at(step) for step in steps]
    assert ours == pytest.approx([BATCH * published_lr(step + 1) for step in steps], rel=1e-6)


def test_a_step_is_the_one_published() -> None:
    """Two steps of the same learning rate, of a small network, by the formulas of the entry."""
    config = vd.recipes.dawnbench(width=2, ghost_batch=4, batch_size=16)
    torch.manual_seed(0)
    model = build_model(config.model, classes=10, image_size=16)
    images, labels = torch.randn(2, 16, 3, 16, 16), torch.randint(0, 10, (2, 16))
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    expected = {name: p.detach().clone() for name, p in learned.items()}
    velocity = {name: torch.zeros_like(p) for name, p in learned.items()}
    lr, batch = published_lr(20), 16.0
    optimizer = make_optimizer(model, config.train)
    for images_of_step, labels_of_step in zip(images, labels, strict=True):
        logits = model(images_of_step)
        log_p = logits.log_softmax(1)
        cross_entropy = F.nll_loss(log_p, labels_of_step, reduction="none")
        summed = (0.8 * cross_entropy - 0.2 * log_p.mean(1)).sum()
        grads = torch.autograd.grad(summed, list(learned.values()), retain_graph=True)
        for (name, weight), grad in zip(expected.items(), grads, strict=True):
            # In the entry's units the batch of one device counts; here there is one device.
            own_lr, decay = lr * BATCH / batch, 5e-4 * 1.5 * batch
            if "bias" in name:
                own_lr, decay = 64 * own_lr, decay / 64
            change = -own_lr * (grad + decay * weight)
            velocity[name] = 0.9 * velocity[name] + change
            weight.add_(change + 0.9 * velocity[name])
        set_lr(optimizer, lr * BATCH)
        smoothing = config.train.label_smoothing
        F.cross_entropy(logits, labels_of_step, label_smoothing=smoothing).backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, weight in learned.items():
            torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-4, atol=1e-5)


def test_the_network_is_the_published_one() -> None:
    model = build_model(vd.recipes.dawnbench().model, classes=10, image_size=32)
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shifts = 64 + 3 * 128 + 256 + 3 * 512
    convs = 27 * 64 + 9 * (64 * 128 + 2 * 128 * 128 + 128 * 256 + 256 * 512 + 2 * 512 * 512)
    assert learned == shifts + convs + 5120
    assert model.logit_scale == 1 / 16
    assert [name for name, _ in model.layer1.named_children()] == ["conv", "pool", "norm", "celu", "residual"]


TINY = {
    **{"data": "shapes", "limit_train": 100, "limit_test": 40, "batch_size": 32, "width": 2, "epochs": 3},
    **{"precision": "fp32", "device": "cpu", "ghost_batch": 8},
}
FLAGS = [word for key, value in TINY.items() for word in ("--" + key.replace("_", "-"), str(value))]


def test_it_trains_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "dawnbench", *FLAGS, "--json", "--quiet"]) == EXIT_DONE
    result = json.loads(capsys.readouterr().out)
    assert result["recipe"] == "dawnbench"
    assert result["prepare_seconds"] > 0
    run = vd.Run(next((tmp_path / "runs").iterdir()))
    history = run.folder.read_history()
    assert [row["epoch"] for row in history] == [1, 2, 3]
    page = run.folder.report.read_text()
    assert "ghost_batch" in page or "ghost batch" in page.lower()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["speed94", "--prep", "conv"], "prep is 'conv', but in speednet it is always 'whiten'"),
        (["speed94", "--activation", "celu"], "activation is 'celu', but in speednet it is always 'gelu'"),
        (["resnet9", "--activation", "cel"], "Did you mean celu?"),
        (
            ["dawnbench", "--ghost-batch", "4096"],
            "ghost_batch is 4096, but must not be larger than batch_size",
        ),
        (["dawnbench", "--ghost-batch", "0"], "--ghost-batch is '0', but must be a whole number at least 1"),
        (
            ["dawnbench", "--flat-end", "0.9"],
            "peak is 0.2 and flat_end 0.9, but together they must be below 1",
        ),
        (["dawnbench", "--flat-end", "1"], "--flat-end is '1', but must be a number at least 0 and below 1"),
    ],
)
def test_bad_input_is_one_clear_line(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words, "--data", "shapes", "--lr", "2"]) == EXIT_BAD_INPUT
    err = capsys.readouterr().err
    assert expected in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_speednet_may_be_told_what_it_is() -> None:
    config = check(override(vd.recipes.speed94(), {"prep": "whiten", "activation": "gelu"}))
    assert config.model.activation == "gelu"
