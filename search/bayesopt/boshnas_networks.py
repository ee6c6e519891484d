"""The three networks of BOSHNAS (FlexiBERT, arXiv 2205.11656, Section 3.3), a surrogate that can be differentiated.

A natural-parameter network (Wang et al. 2016, arXiv 1611.00448), whose weights and activations are Gaussians, predicts
the value and the aleatoric variance; a teacher with Monte Carlo dropout scatters where data are scarce; a student
learns that scatter, the epistemic uncertainty, so that it has a gradient with respect to the input.

Differences from the public code: one validation split per fit instead of a new one every epoch, which lets every
sample leak into training; batches with the learning rates scaled by their size, instead of single samples; the loss of
the paper without the code's factor of 10; networks are trained afresh, since proposals are functions of the trials.

Notation: n measured architectures, N others, F features; m and s: (N, units) mean and variance of activations.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .surrogate import Prediction


EPOCHS = 200
BATCH_SIZE = 64
VALIDATION_SHARE = 0.2
PATIENCE = 7
MIN_EPOCHS = 10
DROPOUT = 0.3
TEACHER_PASSES = 10


class GaussianLinear(nn.Module):
    """A linear layer with Gaussian weights: (m, s) -> (m W + b, s (W² + W_s) + m² W_s + b_s)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        bound = math.sqrt(6 / (inputs + outputs))
        self.mean = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        self.raw_variance = nn.Parameter(torch.rand(inputs, outputs).mul(0.01 * bound).clamp(min=1e-9).expm1().log())
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.raw_bias_variance = nn.Parameter(torch.full((outputs,), -10.0))

    def forward(self, m: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        variance = F.softplus(self.raw_variance)
        bias_variance = F.softplus(self.raw_bias_variance)
        return m @ self.mean + self.bias, s @ (variance + self.mean**2) + m**2 @ variance + bias_variance


def gaussian_relu(m: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of max(x, 0) for x ~ N(m, s), with a sigmoid for the normal distribution function."""
    positive = torch.sigmoid(math.sqrt(8 / math.pi) * m / s.sqrt())
    density = (s / (2 * math.pi)).sqrt() * torch.exp(-(m**2) / (2 * s))
    mean = positive * m + density
    return mean, (positive * (m**2 + s) + m * density - mean**2).clamp(min=1e-8)


def gaussian_sigmoid(m: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of sigmoid(x) for x ~ N(m, s), approximately."""
    mean = torch.sigmoid(m / (1 + math.pi / 8 * s).sqrt())
    alpha, beta = 4 - 2 * math.sqrt(2), -math.log(1 + math.sqrt(2))
    square = torch.sigmoid(alpha * (m + beta) / (1 + math.pi / 8 * alpha**2 * s).sqrt())
    return mean, (square - mean**2).clamp(min=1e-8)


class NaturalParameterNetwork(nn.Module):
    """(N, F) -> mean and aleatoric variance, both (N,), of a value between 0 and 1."""

    def __init__(self, inputs: int):
        super().__init__()
        self.layers = nn.ModuleList([GaussianLinear(inputs, 32), GaussianLinear(32, 32), GaussianLinear(32, 1)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        m, s = self.layers[0](x, torch.zeros_like(x))
        for layer in self.layers[1:]:
            m, s = layer(*gaussian_relu(m, s))
        m, s = gaussian_sigmoid(m, s)
        return m.squeeze(-1), s.squeeze(-1)


def perceptron(inputs: int, dropout: float = 0.0) -> nn.Sequential:
    """The teacher, and without dropout the student: (N, F) -> (N, 1) between 0 and 1."""
    hidden = [nn.Linear(inputs, 64), nn.Softplus(), nn.Dropout(dropout)]
    hidden += [nn.Linear(64, 32), nn.Softplus(), nn.Dropout(dropout)]
    return nn.Sequential(*hidden, nn.Linear(32, 1), nn.Sigmoid())


class BoshnasNetworks:
    """Teacher, student and natural-parameter network as one `Surrogate` of values between 0 and 1.

    Args:
        seed: Of initial weights, split, order and dropout.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        """Trains the teacher, then the student on its scatter, then the natural-parameter network."""
        inputs, values = torch.from_numpy(x).float(), torch.from_numpy(y).float()
        with torch.random.fork_rng(devices=[]):  # dropout and initialisation know the global generator only
            torch.manual_seed(self.seed)
            teacher = perceptron(x.shape[1], DROPOUT)
            self.student = perceptron(x.shape[1])
            self.network = NaturalParameterNetwork(x.shape[1])

            def teacher_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return F.mse_loss(teacher(x).squeeze(-1), y)

            def student_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                with torch.no_grad():
                    scatter = teacher(x.expand(TEACHER_PASSES, *x.shape)).std(0)
                return F.mse_loss(self.student(x), scatter)

            def network_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                mean, variance = self.network(x)
                return F.gaussian_nll_loss(mean, y, variance)

            train(teacher_loss, torch.optim.AdamW(teacher.parameters(), 2e-3 * BATCH_SIZE), inputs, values)
            train(student_loss, torch.optim.SGD(self.student.parameters(), 2e-3 * BATCH_SIZE), inputs, values)
            train(network_loss, torch.optim.AdamW(self.network.parameters(), 5e-5 * BATCH_SIZE), inputs, values)

    def moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean, aleatoric and epistemic standard deviation (N,) of x (N, F), differentiable."""
        mean, variance = self.network(x)
        return mean, variance.sqrt(), self.student(x).squeeze(-1)

    def predict(self, x: np.ndarray) -> Prediction:
        with torch.no_grad():
            return Prediction(*(part.double().numpy() for part in self.moments(torch.from_numpy(x).float())))


def train(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
) -> None:
    """Minimises a loss until its validation value has not fallen once in `PATIENCE` epochs."""
    order = torch.randperm(len(x))
    held_out = order[: int(VALIDATION_SHARE * len(x))]
    order = order[len(held_out) :]
    history: list[float] = []
    for epoch in range(EPOCHS):
        for batch in torch.split(order[torch.randperm(len(order))], BATCH_SIZE):
            optimizer.zero_grad()
            loss(x[batch], y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            history.append(float(loss(x[held_out], y[held_out])) if len(held_out) else -epoch)
        recent = history[-PATIENCE - 1 :]
        if epoch >= MIN_EPOCHS and all(later >= earlier for earlier, later in zip(recent, recent[1:])):
            break
