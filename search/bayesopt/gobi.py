"""GOBI: gradient-based optimisation with backpropagation to the input (Tuli et al. 2021, arXiv 2110.05529), which
BOSHNAS (arXiv 2205.11656) uses to find inputs that a surrogate likes. It needs no list of candidates but leaves the
legal architectures: what it finds is the neighbourhood of one.

Notation: R restarts, F features.
"""

from collections.abc import Callable

import torch


LEARNING_RATE = 0.5
MAX_STEPS = 200
TOLERANCE = 1e-5
PATIENCE = 5


def climb(
    acquisition: Callable[[torch.Tensor], torch.Tensor],
    starts: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Maximises an acquisition function from several starts at once with AdaHessian, within a box.

    Args:
        acquisition: Values (R,) of inputs (R, F), twice differentiable.
        starts: (R, F).
        low, high: (F,) bounds, to which inputs are clamped after every step.
        generator: Of the signs of Hutchinson's estimate of the Hessian's diagonal.

    Returns:
        (R, F) inputs, each the last of its climb.
    """
    from pytorch_optimizer import AdaHessian  # takes seconds to import, and only this preset needs it

    x = starts.clone().requires_grad_()
    optimizer = AdaHessian([x], lr=LEARNING_RATE, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
    last, calm = float("inf"), 0
    for _ in range(MAX_STEPS):
        loss = -acquisition(x).sum()  # restarts do not interact: the gradient of each is its own
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        signs = torch.randint(0, 2, x.shape, generator=generator).to(x.dtype) * 2 - 1
        (curvature,) = torch.autograd.grad(gradient, x, signs)
        x.grad = gradient.detach()
        optimizer.step(hessian=[(curvature * signs).abs()])
        schedule.step()
        with torch.no_grad():
            x.clamp_(low, high)
        calm = calm + 1 if abs(last - loss.item()) < TOLERANCE else 0
        last = loss.item()
        if calm > PATIENCE:
            break
    return x.detach()
