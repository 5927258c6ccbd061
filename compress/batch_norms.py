"""Exact running statistics of batch norms at the end of a pass (PreciseBN)."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def settle_batch_norms(
    objective: nn.Module, batches: Iterable[tuple[Tensor, ...]], mean: Callable[[Tensor], Tensor]
) -> None:
    """Replace running statistics of batch norms by their plain mean over ``batches`` (PreciseBN, arXiv 2105.07576, 3).

    Running averages lag behind weights that change fast: after a short training they shift all scores to one side.
    ``batches``: arguments of ``objective``; ``mean``: averages a tensor over the training processes. A norm that the
    objective does not run, as one in a frozen part, keeps its statistics.
    """
    norms = [m for m in objective.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    before = [copy.deepcopy(dict(norm.named_buffers())) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None: a cumulative mean
    with torch.no_grad():
        for inputs in batches:
            objective(*inputs)
    for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
        norm.momentum = momentum
        assert norm.num_batches_tracked is not None
        if norm.num_batches_tracked == 0:
            norm.load_state_dict(buffers, strict=False)
            continue
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            statistic.copy_(mean(statistic))
