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
