"""Learning from a teacher's last hidden states through a linear map, per token and of their mean.

Notation: h (B, L, d) the student's states, mapped by W h + b onto the teacher's width; t (B, L, d) the teacher's.

TinyBERT's hidden-state distillation (arXiv 1909.10351, equation 8) is the mean squared error of h W and t; DistilBERT
(arXiv 1910.01108, Section 3) aligns directions by the cosine. The mean over a sequence's tokens is what
Sentence-BERT (arXiv 1908.10084) takes for its meaning.
"""

import torch
from torch import nn
from torch.nn.functional import cosine_similarity


class TokenCosine(nn.Module):
    """Sum over tokens of 1 - cos(W h + b, t)."""

    uses_map, counted = True, "tokens"

    def forward(self, states: torch.Tensor, taught: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ((1 - cosine_similarity(states, taught, dim=-1)) * mask).sum()


class TokenSquare(nn.Module):
    """Sum over tokens of the mean over features of (W h + b - t)^2."""

    uses_map, counted = True, "tokens"

    def forward(self, states: torch.Tensor, taught: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ((states - taught).square().mean(-1) * mask).sum()


class PooledCosine(nn.Module):
    """Sum over sequences of 1 - cos of the means over their tokens."""

    uses_map, counted = True, "rows"

    def forward(self, states: torch.Tensor, taught: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (1 - cosine_similarity(pool(states, mask), pool(taught, mask), dim=-1)).sum()


class PooledSquare(nn.Module):
    """Sum over sequences of the mean over features of the squared difference of the means over their tokens."""

    uses_map, counted = True, "rows"

    def forward(self, states: torch.Tensor, taught: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (pool(states, mask) - pool(taught, mask)).square().mean(-1).sum()


def pool(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, L, d) -> (B, d), the mean over the tokens of `mask` (B, L)."""
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
