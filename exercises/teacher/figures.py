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
    for count in range(STEPS + 1):
        W = B @ A
        yield count, W[0, 0].item(), W[0, 1].item()
        G = W - Y
        B, A, state = step(B, A, G @ A.T, B.T @ G, state, 0.02, (0.9, 0.95), 1e-12)


def splits():
    rite = load_exercise("ex16", solutions=True)
    for name, step in (("LoRA-RITE", rite.step), ("Adam", adam_step)):
        for split in (1, 4):
            for count, x, y in path(step, split):
                yield {"run": f"{name}, {'A, B' if split == 1 else '4B, A/4'}", "step": count,
                       "x": round(x, 6), "y": round(y, 6)}


def draw_splits():
    figure, panels = plot.new_figure(10, 4.5, panels=2)
    rows = list(splits())
    for panel, name in zip(panels, ("Adam", "LoRA-RITE")):
        for split, (color, line, marker) in zip(("A, B", "4B, A/4"), plot.LOOKS):
            mine = [row for row in rows if row["run"] == f"{name}, {split}"]
            panel.plot([row["x"] for row in mine], [row["y"] for row in mine], color=color,
                       linestyle=line, label=f"from {split}")
            panel.plot([mine[-1]["x"]], [mine[-1]["y"]], color=color, marker=marker, markersize=10,
                       markerfacecolor="none", markeredgewidth=2)
        panel.plot([mine[0]["x"]], [mine[0]["y"]], "k*", markersize=14, label="start")
        panel.set(title=name, xlabel="W[0, 0]", xlim=(-0.4, 0.8), ylim=(-1.2, 0.2))
    panels[0].set_ylabel("W[0, 1]")
    plot.name_lines(figure, panels[0])
    return figure


# Boosters of rank 1 against the truncated SVD

def boosters():
    boost = load_exercise("ex10", solutions=True).boost
    generator = torch.Generator().manual_seed(0)
    E = torch.randn(16, ROUNDS, dtype=torch.float64, generator=generator)
    S = torch.linalg.svdvals(E)
    for rank in range(ROUNDS + 1):
        yield {"run": "truncated SVD", "rounds": rank,
               "left": round((S[rank:].norm() / S.norm()).item(), 6)}
    for rate in (1.0, 0.5, 0.2):
        residual = E
        yield {"run": f"rate {rate:g}", "rounds": 0, "left": 1.0}
        for count, (b, a) in enumerate(boost(E, ROUNDS, rate), 1):
            residual = residual - rate * b @ a
            yield {"run": f"rate {rate:g}", "rounds": count,
                   "left": round((residual.norm() / E.norm()).item(), 6)}


def draw_boosters():
    figure, panel = plot.new_figure(7, 4.2)
    rows = list(boosters())
    for run, (color, line, marker) in zip(dict.fromkeys(row["run"] for row in rows), plot.LOOKS):
        mine = [row for row in rows if row["run"] == run]
        svd = run == "truncated SVD"
        panel.plot([row["rounds"] for row in mine], [row["left"] for row in mine], color=color,
                   linestyle="none" if svd else line, marker=marker, label=run,
                   markersize=12 if svd else 6, markerfacecolor="none" if svd else color)
    panel.set(xlabel="boosters of rank 1", ylabel="what is left of ‖E‖", ylim=(0, 1.03))
    plot.name_lines(figure, panel, columns=2)
    return figure


def main():
    for name, draw in (("splits", draw_splits), ("boosters", draw_boosters)):
        plot.write(draw(), FIGURES / f"{name}.svg")
        print(FIGURES / f"{name}.svg")


if __name__ == "__main__":
    run_command(main)
