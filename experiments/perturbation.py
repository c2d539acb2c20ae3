"""Has full fine-tuning's ΔW a high rank? How many singular values hold nine tenths of ‖ΔW‖²_F.

By layer and by steps, beside Gaussian noise of the same shape: what is as high for noise says
nothing about learning ("LoRA Learns Less and Forgets Less", figs. 6 and S8).

If it is low on `math`, is it since the task is narrow, or since the rate is large, so that the
steps add up? Then it must be higher on `code`, or at a tenth of the rate.
"""
import torch

import curves
from experiments import compare, question, trained

SHARE = 0.9
CASES = {
    "math, 100 steps": (trained.FULL, "--steps 100"),
    "math, 300 steps": (trained.FULL, "--steps 300"),
    "math, 1000 steps": (trained.FULL, ""),
    "math, 300 steps, a tenth of the rate": (question.Variant("full", (3e-4,)), "--steps 300"),
    "code, 300 steps": (question.Variant("full", (3e-3,), data="code"),
                        "--steps 300 --batch_size 8"),
    "code, 300 steps, a tenth of the rate": (question.Variant("full", (3e-4,), data="code"),
                                             "--steps 300 --batch_size 8"),
}
RUNS = {(case, seed): (variant, seed, more)
        for seed in trained.SEEDS for case, (variant, more) in CASES.items()}


def variance_rank(W, share=SHARE):
    """How many singular values hold this share of ‖W‖²_F."""
    energy = torch.linalg.svdvals(W).square().cumsum(0)
    return (energy < share * energy[-1]).sum().item() + 1


def rows(runs):
    for (case, seed), directory in runs.items():
        for name, (_, delta) in trained.deltas(directory).items():
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(delta.shape, dtype=delta.dtype, generator=generator)
            yield {"run": case, "seed": seed, "layer": name,
                   "kind": "attention" if ".attn." in name else "MLP",
                   "rank": variance_rank(delta), "noise": variance_rank(noise),
                   "norm": round(delta.norm().item(), 4)}


def text(rows):
    header = ["run", "layers", "singular values for 90 % of ‖ΔW‖², of 256", "of noise", "‖ΔW‖"]
    return compare.markdown(header, [
        [case, kind, trained.spread(mine, "rank"), trained.spread(mine, "noise"),
         trained.spread(mine, "norm", "{:.1f}")]
        for (case, kind), mine in trained.groups(rows, "run", "kind").items()])


def draw(rows):
    """A mark for each layer and seed, in a line for each kind of layer in each run."""
    figure, panel = curves.new_figure(11, 6)
    ticks = {}
    for (case, kind), mine in trained.groups(rows, "run", "kind").items():
        color, _, marker = curves.LOOKS[kind == "MLP"]
        place = ticks.setdefault(case, len(ticks)) + 0.15 * (1 if kind == "MLP" else -1)
        for column, face, label in (("rank", color, kind), ("noise", "none", f"noise like {kind}")):
            values = sorted({int(row[column]) for row in mine})
            panel.plot(values, [place] * len(values), marker, color=color, markerfacecolor=face,
                       alpha=0.6, label=label if place < 0.5 else None)
    panel.set_yticks(list(ticks.values()), list(ticks))
    panel.invert_yaxis()
    panel.set(xlim=(0, 256), xlabel="singular values that hold 90 % of ‖ΔW‖², of 256")
    curves.name_lines(figure, panel)
    return figure


QUESTION = trained.Measurement("perturbation", RUNS, rows, text, draw)

if __name__ == "__main__":
    trained.ask(QUESTION)
