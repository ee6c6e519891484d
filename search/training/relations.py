"""Learning how a teacher's tokens relate to each other (MiniLMv2, arXiv 2012.15828, Section 3.1)."""

import torch
from torch import nn


HEADS = 4


class Relations(nn.Module):
    """Sum over tokens of KL(R(t) || R(h)), averaged over relation heads.

    A state of width d is split into A relation heads of width d / A, and R_a(x) = softmax(x_a x_a^T / sqrt(d / A))
    over a sequence's tokens, so student and teacher need no equal width. MiniLMv2 relates queries, keys and values of
    an attention layer; here the last hidden states are related to each other, because a student's layer may hold no
    attention. Features that A heads do not share evenly are left out.
    """

    uses_map, counted = False, "tokens"

    def forward(self, states: torch.Tensor, taught: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        keys = mask[:, None, None].bool()  # (B, 1, 1, L)
        student, teacher = (scores(x).masked_fill(~keys, -1e4).log_softmax(-1) for x in (states, taught))
        divergence = (teacher.exp() * (teacher - student)).sum(-1)  # (B, A, L)
        return (divergence.mean(1) * mask).sum()


def scores(states: torch.Tensor) -> torch.Tensor:
    """(B, L, d) -> (B, A, L, L), scaled inner products within relation heads."""
    size = states.shape[-1] // HEADS
    heads = states[..., : HEADS * size].unflatten(-1, (HEADS, size)).transpose(1, 2)
    return heads @ heads.transpose(2, 3) / size**0.5
