"""Settled statistics against plain means."""

import torch

from compress.batch_norms import settle_batch_norms


def test_settled_batch_norms_hold_the_plain_mean_over_batches():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(3)
    data = [torch.randn(16, 3) * 2 + 5 for _ in range(4)]
    settle_batch_norms(norm.train(), [(part,) for part in data], lambda tensor: tensor)
    torch.testing.assert_close(norm.running_mean, torch.stack([d.mean(0) for d in data]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([d.var(0) for d in data]).mean(0))
    assert norm.momentum == 0.1


def test_norms_that_are_not_run_keep_their_statistics():
    part = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3))
    part[1].running_mean.fill_(7.0)
    part.forward = lambda data: part[0](data)
    settle_batch_norms(part.train(), [(torch.randn(16, 3) + 5,)], lambda tensor: tensor)
    assert part[0].running_mean.mean() > 4
    assert (part[1].running_mean == 7).all() and part[1].num_batches_tracked == 0
