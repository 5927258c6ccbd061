"""Losses of distillation: pure functions of tensors."""

import torch
import torch.nn.functional as functional
from torch import Tensor


def classification(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits [N, 2] with labels int64 [N], the mean over samples.

    class_weights: float32 [2], by which the samples of a class weigh more. The sum is divided by N and not by the sum
    of weights, so that the mean over parts of a batch is that of the whole.
    """
    return functional.cross_entropy(logits.float(), labels, class_weights, reduction="sum") / len(labels)


def kl_logits(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """KL divergence of the student's from the teacher's softened classes, times T^2.

    student, teacher: logits [N, 2]. Hinton, Vinyals & Dean, arXiv 1503.02531, section 2.
    """
    return temperature**2 * functional.kl_div(
        torch.log_softmax(student.float() / temperature, dim=-1),
        torch.log_softmax(teacher.float() / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


def kl_embeddings(student: Tensor, projected_teacher: Tensor) -> Tensor:
    """KL divergence between embeddings read as distributions over their D dimensions (softmax of each).

    student: [N, D]; projected_teacher: [N, D], the teacher's embedding after a learned linear layer to D.
    The loss of the flow-and-depth study that Pocketproof grew from.
    """
    return functional.kl_div(
        torch.log_softmax(student.float(), dim=-1),
        torch.log_softmax(projected_teacher.float(), dim=-1),
        reduction="batchmean",
        log_target=True,
    )
