"""Learning from a teacher's predictions of masked tokens (DistilBERT, arXiv 1910.01108, Section 3)."""

import torch


TEMPERATURE = 2.0


def logits_loss(logits: torch.Tensor, taught: torch.Tensor, labels: torch.Tensor, ignored: int) -> torch.Tensor:
    """Sum over predictions of T^2 KL(softmax(t / T) || softmax(z / T)), with T = 2.

    The factor T^2 keeps the size of gradients (Hinton, Vinyals, Dean, arXiv 1503.02531, Section 2).

    Args:
        logits: (N, V) z, of the student.
        taught: (N, V) t, of the teacher for the same masked sequences.
        labels: (N,); rows whose label is `ignored` do not count.
    """
    student = (logits.float() / TEMPERATURE).log_softmax(-1)
    teacher = (taught.float() / TEMPERATURE).log_softmax(-1)
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    return TEMPERATURE**2 * (divergence * (labels != ignored)).sum()
