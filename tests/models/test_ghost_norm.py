"""Ghost batch norm against torch's batch norm, applied to one group of images after the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from velodrome.models.ghost_norm import GhostBatchNorm2d, use_ghost_batches
from velodrome.models.resnet9 import ResNet9

CHANNELS = 5


def a_batch(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    images = torch.randn(n, CHANNELS, 4, 6, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def a_norm(group: int) -> GhostBatchNorm2d:
    norm = GhostBatchNorm2d(CHANNELS, group, momentum=0.3)
    generator = torch.Generator().manual_seed(1)
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        values.data = torch.rand(CHANNELS, generator=generator) + 0.5
    return norm


def group_by_group(norm: GhostBatchNorm2d, x: Tensor, sizes: list[int]) -> Tensor:
    """What torch makes of the groups; the running statistics are the mean of what each group alone makes."""
    parts, after = [], []
    for part in x.split(sizes):
        alone = nn.BatchNorm2d(CHANNELS, norm.eps, norm.momentum)
        alone.load_state_dict(norm.state_dict())
        alone.weight, alone.bias = norm.weight, norm.bias
        parts.append(alone(part))
        after.append((alone.running_mean, alone.running_var))
    means, variances = zip(*after, strict=True)
    norm.running_mean = torch.stack(means).mean(0)
    norm.running_var = torch.stack(variances).mean(0)
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("n", "group", "sizes"),
    [
        (12, 4, [4, 4, 4]),
        (12, 3, [3] * 4),
        (11, 4, [4, 7]),
        (9, 4, [4, 5]),
        (7, 4, [7]),
        (4, 4, [4]),
        (3, 1, [1] * 3),
    ],
)
def test_each_group_is_normalised_as_a_batch_of_its_own(n, group, sizes):
    ours, theirs = a_norm(group), a_norm(group)
    x = a_batch(n)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    y1, y2 = ours(x1), group_by_group(theirs, x2, sizes)
    torch.testing.assert_close(y1, y2)
    upstream = a_batch(n, seed=2)
    (y1 * upstream).sum().backward()
    (y2 * upstream).sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    # Of a group that is larger than the others, the mean over groups takes no more notice.
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == 1


def test_groups_differ_from_the_whole_batch():
    x = a_batch(8)
    whole = copy.deepcopy(a_norm(8))
    assert (a_norm(4)(x) - whole(x)).abs().max() > 0.05


def test_in_evaluation_it_is_an_ordinary_batch_norm():
    norm = a_norm(2).eval()
    plain = nn.BatchNorm2d(CHANNELS, norm.eps, norm.momentum).eval()
    plain.load_state_dict(norm.state_dict())
    x = a_batch(8)
    assert torch.equal(norm(x), plain(x))
    assert norm.num_batches_tracked == 0


def test_half_precision_is_normalised_in_float32():
    norm = a_norm(4)
    x = a_batch(8, dtype=torch.bfloat16) + 100  # where bf16 has steps of 0.5
    y = norm(x)
    assert y.dtype == torch.bfloat16
    expected = group_by_group(a_norm(4), x.float(), [4, 4])
    torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2)
    assert norm.running_mean.dtype == torch.float32


def test_memory_stays_channels_last():
    assert a_norm(4)(a_batch(8)).is_contiguous(memory_format=torch.channels_last)


def test_a_network_gets_ghosts_for_all_of_its_batch_norms():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResNet9(width=2, classes=3)
    before = copy.deepcopy(network)
    use_ghost_batches(network, 4)
    ghosts = {name for name, module in network.named_modules() if isinstance(module, GhostBatchNorm2d)}
    assert ghosts == {name for name, module in before.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert list(network.state_dict()) == list(before.state_dict())
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in network.state_dict().items())
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {
        name for name, p in before.named_parameters() if p.requires_grad
    }
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(network.train()(images), before.train()(images))
    assert "group=4" in repr(network)
