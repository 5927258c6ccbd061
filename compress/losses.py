"""Losses of distillation: pure functions that return a scalar, in float64 for float64 tensors, else in float32."""

import torch
import torch.nn.functional as functional
from torch import Tensor

TEMPERATURE = 2.0
"""T by which ``kl_logits`` softens the logits of both."""


def _full(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or unchanged if it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def classification(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits [N, 2] with labels int64 [N], the mean over samples.

    class_weights: float32 [2], weights of the samples of each class. The sum is divided by N and not by the sum of
    weights, so that the mean over the parts of a batch equals that of the whole batch.
    """
    return functional.cross_entropy(_full(logits), labels, class_weights, reduction="sum") / len(labels)


def kl_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of the student's from the teacher's softened classes, times T^2, where T is ``TEMPERATURE``.

    ``T^2 sum_c p_c(z_t / T) (log p_c(z_t / T) - log p_c(z_s / T))``, the mean over samples. student, teacher: logits
    [N, 2]. Hinton, Vinyals & Dean, arXiv 1503.02531, section 2.
    """
    return TEMPERATURE**2 * functional.kl_div(
        torch.log_softmax(_full(student) / TEMPERATURE, dim=-1),
        torch.log_softmax(_full(teacher) / TEMPERATURE, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


def margin(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 distance of the student's margin between its two logits from the teacher's, the mean over samples.

    ``h(m_s - m_t)`` with ``m = z_fake - z_real``, ``h(x) = x^2 / 2`` for ``|x| < 1`` and ``|x| - 1/2`` beyond.
    student, teacher: logits [N, 2]. Logits compared directly: Kim et al., arXiv 2105.08919, section 3; of two
    logits, their difference is all that P(fake) depends on.
    """
    student, teacher = _full(student), _full(teacher)
    return functional.smooth_l1_loss(student[:, 1] - student[:, 0], teacher[:, 1] - teacher[:, 0])


def kl_embeddings(student: Tensor, projected_teacher: Tensor) -> Tensor:
    """KL divergence between embeddings read as distributions over their D dimensions (softmax of each).

    student: [N, D]; projected_teacher: [N, D], the teacher's embedding after a learned linear layer to D.
    The loss of the flow-and-depth study that Pocketproof grew from.
    """
    return functional.kl_div(
        torch.log_softmax(_full(student), dim=-1),
        torch.log_softmax(_full(projected_teacher), dim=-1),
        reduction="batchmean",
        log_target=True,
    )


def cosine(projected_student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return ``1 - cos`` of the angle between features [N, D] or [N, P, D], the mean over positions, then samples.

    valid: bool [N, P], the positions that count; a sample without any adds 0.

    On embeddings with an orthogonal projector P of the student: VkD (Miles, Elezi & Deng, arXiv 2403.06213, section
    3), for features of length 1, of which this is half the squared distance. On feature maps with one projector per
    stage: position by position, as in FitNets (Romero et al., arXiv 1412.6550, section 2.2), but without regard to
    lengths, which are not comparable across architectures.
    """
    student, teacher = _full(projected_student), _full(teacher)
    lengths = torch.linalg.vector_norm(student, dim=-1) * torch.linalg.vector_norm(teacher, dim=-1)
    # Not functional.cosine_similarity, which takes twice as long forward and backward.
    distance: Tensor = 1 - (student * teacher).sum(-1) / lengths.clamp(min=1e-8)
    if valid is None:
        return distance.mean()
    return (distance.masked_fill(~valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)).mean()


def _pairwise_distances(embeddings: Tensor) -> Tensor:
    """Return Euclidean distances between all pairs of rows, [N, N], divided by their mean over different rows."""
    squared = (embeddings[:, None] - embeddings[None]).square().sum(-1)
    # Clamped, because the root's slope is infinite at 0, the distance of a row from itself.
    distances = (
        squared.clamp(min=1e-12)
        .sqrt()
        .masked_fill(torch.eye(len(squared), dtype=torch.bool, device=squared.device), 0.0)
    )
    count = len(embeddings) * (len(embeddings) - 1)
    return distances / (distances.sum() / max(1, count)).clamp(min=1e-12)


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 distance between the distances among a batch's embeddings, each divided by their mean.

    ``mean_ij h(d_s(i, j) - d_t(i, j))``. student: [N, D]; teacher: [N, E]. RKD-D: Park et al., arXiv 1904.05068,
    section 3.2.1.
    """
    return functional.smooth_l1_loss(_pairwise_distances(_full(student)), _pairwise_distances(_full(teacher)))


def _angles(embeddings: Tensor) -> Tensor:
    """Return the cosines of the angles at j between i and k, [N, N, N] of (j, i, k); 0 where i or k is j."""
    towards = functional.normalize(embeddings[None] - embeddings[:, None], dim=-1)
    with torch.autocast(towards.device.type, enabled=False):  # autocast would multiply in 16 bits
        return towards @ towards.transpose(1, 2)


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 distance between the cosines of the angles that all triples of a batch's embeddings form.

    ``mean_ijk h(cos_s(i, j, k) - cos_t(i, j, k))``. student: [N, D]; teacher: [N, E]. RKD-A: Park et al., arXiv
    1904.05068, section 3.2.2.
    """
    return functional.smooth_l1_loss(_angles(_full(student)), _angles(_full(teacher)))
