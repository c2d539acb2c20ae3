"""Has full fine-tuning's ΔW a high rank? How many singular values hold nine tenths of ‖ΔW‖²_F.

By layer and by steps, beside Gaussian noise of the same shape: what is as high for noise says
nothing about learning ("LoRA Learns Less and Forgets Less", figs. 6 and S8).
"""
import torch

from experiments import trained

STEPS = (100, 300, 1000)
SHARE = 0.9
RUNS = {(steps, seed): (trained.FULL, seed, f"--steps {steps}" * (steps != 1000))
        for seed in trained.SEEDS for steps in STEPS}


def variance_rank(W, share=SHARE):
    """How many singular values hold this share of ‖W‖²_F."""
    energy = torch.linalg.svdvals(W).square().cumsum(0)
    return (energy < share * energy[-1]).sum().item() + 1


def rows(runs):
    for (steps, seed), directory in runs.items():
        for name, (_, delta) in trained.deltas(directory).items():
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(delta.shape, dtype=delta.dtype, generator=generator)
            yield {"steps": steps, "seed": seed, "layer": name,
                   "kind": "attention" if ".attn." in name else "MLP",
                   "rank": variance_rank(delta), "noise": variance_rank(noise),
                   "norm": round(delta.norm().item(), 4)}


def text(rows):
    lines = ["| steps | layers | singular values for 90 % of ‖ΔW‖², of 256 | of noise | ‖ΔW‖ |",
             "|---|---|---|---|---|"]
    for (steps, kind), mine in trained.groups(rows, "steps", "kind").items():
        ranks, noise = trained.spread(mine, "rank"), trained.spread(mine, "noise")
        lines.append(f"| {steps} | {kind} | {ranks} | {noise} | "
                     f"{trained.spread(mine, 'norm', '{:.1f}')} |")
    return "\n".join(lines)


QUESTION = trained.Measurement("perturbation", RUNS, rows, text)

if __name__ == "__main__":
    trained.ask(QUESTION)
