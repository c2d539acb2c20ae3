"""Draws the handout's two figures, with the solutions of exercises 10 and 16.

    python -m exercises.teacher.figures

writes exercises/figures/*.svg.
"""
from pathlib import Path

import torch

from data.files import run_command
from exercises.train import load_exercise
from experiments import plot

FIGURES = Path(__file__).parents[1] / "figures"
STEPS = 150
ROUNDS = 12


# Two ways to split BA, two optimizers: where does W go?

def adam_step(B, A, grad_B, grad_A, state, lr, betas, eps):
    """Adam without bias correction, on each number of the factors."""
    new, new_state = [], {}
    for name, value, grad in (("B", B, grad_B), ("A", A, grad_A)):
        mean, square = state.get(name, (torch.zeros_like(value),) * 2)
        mean = betas[0] * mean + (1 - betas[0]) * grad
        square = betas[1] * square + (1 - betas[1]) * grad.square()
        new_state[name] = mean, square
        new.append(value - lr * mean / (square + eps).sqrt())
    return *new, new_state


def path(step, split):
    """Two numbers of W = BA after each step, while it learns a matrix Y of the same rank.

    The factors start at (split · B, A / split), which make the same W for every split.
    """
    generator = torch.Generator().manual_seed(1)
    B, A, left, right = (torch.randn(*shape, dtype=torch.float64, generator=generator)
                         for shape in ((6, 2), (2, 5), (6, 2), (2, 5)))
    Y, B, A, state = left @ right, split * B, A / split, {}
    points = []
    for _ in range(STEPS + 1):
        W = B @ A
        points.append((W[0, 0].item(), W[0, 1].item()))
        G = W - Y
        B, A, state = step(B, A, G @ A.T, B.T @ G, state, 0.02, (0.9, 0.95), 1e-12)
    return points


def draw_splits():
    figure, panels = plot.new_figure(10, 4.5, panels=2)
    rite_step = load_exercise("ex16", solutions=True).step
    for panel, name, step in zip(panels, ("Adam", "LoRA-RITE"), (adam_step, rite_step)):
        for split, label, look in zip((1, 4), ("A, B", "4B, A/4"), plot.LOOKS):
            color, line, marker = look
            x, y = zip(*path(step, split))
            panel.plot(x, y, color=color, linestyle=line, label=f"from {label}")
            panel.plot(x[-1:], y[-1:], color=color, marker=marker, markersize=10,
                       markerfacecolor="none", markeredgewidth=2)
        panel.plot(x[:1], y[:1], "k*", markersize=14, label="start")
        panel.set(title=name, xlabel="W[0, 0]", xlim=(-0.4, 0.8), ylim=(-1.2, 0.2))
    panels[0].set_ylabel("W[0, 1]")
    plot.name_lines(figure, panels[0])
    return figure


# Boosters of rank 1 against the truncated SVD

def draw_boosters():
    figure, panel = plot.new_figure(7, 4.2)
    generator = torch.Generator().manual_seed(0)
    E = torch.randn(16, ROUNDS, dtype=torch.float64, generator=generator)
    S = torch.linalg.svdvals(E)
    left = {"truncated SVD": [S[rank:].norm() / S.norm() for rank in range(ROUNDS + 1)]}
    for rate in (1.0, 0.5, 0.2):
        residual, norms = E, [E.norm()]
        for b, a in load_exercise("ex10", solutions=True).boost(E, ROUNDS, rate):
            residual = residual - rate * b @ a
            norms.append(residual.norm())
        left[f"rate {rate:g}"] = [norm / norms[0] for norm in norms]
    for (label, values), (color, line, marker) in zip(left.items(), plot.LOOKS):
        svd = label == "truncated SVD"
        panel.plot([value.item() for value in values], color=color, label=label, marker=marker,
                   linestyle="none" if svd else line, markersize=12 if svd else 6,
                   markerfacecolor="none" if svd else color)
    panel.set(xlabel="boosters of rank 1", ylabel="what is left of ‖E‖", ylim=(0, 1.03))
    plot.name_lines(figure, panel, columns=2)
    return figure


def main():
    for name, draw in (("splits", draw_splits), ("boosters", draw_boosters)):
        plot.write(draw(), FIGURES / f"{name}.svg")
        print(FIGURES / f"{name}.svg")


if __name__ == "__main__":
    run_command(main)
