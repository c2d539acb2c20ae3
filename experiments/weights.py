"""What training does to the weights, and to what the model says: ΔW = W − W0 of trained models.

    python -m experiments.weights            trains what out/weights lacks, then measures
    python -m experiments.weights --quick    four steps a run, for a look, in out/quick

writes three tables to results/: perturbation.csv (how many singular values hold nine tenths of
‖ΔW‖²_F, by layer and by steps, beside Gaussian noise), subspaces.csv (how much LoRA's ΔW shares
with that of another rank or seed, and with W0) and diversity.csv (how many of 50 answers differ).
"""
import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from data import tasks, tokenizer
from data.files import InputError, write_csv
from experiments import question, sweep
from lora import lora_layers
from runs import load_base, load_run, model_of

FULL, LORA = question.Variant("full", (3e-3,)), question.Variant("lora", (5e-3,))
RANKS = (8, 64)
STEPS = (100, 300, 1000)
SEEDS = 3
SHARE = 0.9
QUESTIONS, ANSWERS = 20, 50


def variance_rank(W, share=SHARE):
    """How many singular values hold this share of ‖W‖²_F ("learns less", fig. 6)."""
    energy = torch.linalg.svdvals(W).square().cumsum(0)
    return (energy < share * energy[-1]).sum().item() + 1


def overlap(U, V):
    """φ = ‖UᵀV‖²_F / min(i, j) of orthonormal columns U (d, i), V (d, j): 1 if one holds the other
    (LoRA, §7.2)."""
    return ((U.T @ V).square().sum() / min(U.shape[1], V.shape[1])).item()


def amplification(W, delta, rank):
    """‖ΔW‖_F / ‖UᵀWV‖_F, U and V (d, rank) the singular vectors of ΔW: by how much ΔW amplifies
    what W does in its directions (LoRA, §7.3)."""
    U, _, Vh = torch.linalg.svd(delta, full_matrices=False)
    return (delta.norm() / (U[:, :rank].T @ W @ Vh[:rank].T).norm()).item()


def train(variant, seed, more, folder):
    """The directory of a run, made if it is not there."""
    flags = variant.run(variant.rates[0], seed, more)
    directory = folder / sweep.short(flags)
    if not (directory / "result.json").exists():
        print(f"python train.py {flags}", flush=True)
        if sweep.run(flags, directory, 1)["metric"] == "diverged":
            raise InputError(f"python train.py {flags} diverged")
    return directory


def deltas(directory):
    """W0 and ΔW of each adapted layer -> {name: (W0, ΔW)}, float64."""
    base = {name: W.double() for name, W in load_base().named_parameters()}
    model = model_of(load_run(directory)[1], load_base())
    if lora_layers(model):
        return {name: (base[f"{name}.weight"], layer.delta().detach().double())
                for name, layer in lora_layers(model).items()}
    return {name.removesuffix(".weight"): (W, model.get_parameter(name).detach().double() - W)
            for name, W in base.items() if W.ndim == 2 and ".h." in name}


def perturbation(full):
    """A row for each layer of each run: the rank of nine tenths, and that of noise as large."""
    for (steps, seed), directory in full.items():
        for name, (_, delta) in deltas(directory).items():
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(delta.shape, dtype=delta.dtype, generator=generator)
            yield {"steps": steps, "seed": seed, "layer": name, "rank": variance_rank(delta),
                   "noise": variance_rank(noise), "of": min(delta.shape),
                   "norm": round(delta.norm().item(), 4)}


def right_vectors(delta):
    """The singular vectors of ΔW in the inputs, (d_in, k)."""
    return torch.linalg.svd(delta, full_matrices=False)[2].T


def subspaces(adapters):
    """Rows of φ of the first k directions, by layer, and of the amplification."""
    small, large = ([deltas(adapters[rank, seed]) for seed in range(2)] for rank in RANKS)
    for name, (W, delta) in small[0].items():
        generator = torch.Generator().manual_seed(0)
        noise = torch.linalg.qr(torch.randn(W.shape[1], RANKS[1], dtype=W.dtype,
                                            generator=generator))[0]
        mine = right_vectors(delta)
        others = {"r 8 in r 64, same seed": right_vectors(large[0][name][1]),
                  "r 8 in r 64, another seed": right_vectors(large[1][name][1]),
                  "r 8 in r 8, another seed": right_vectors(small[1][name][1])[:, :RANKS[0]],
                  "r 8 in 64 random directions": noise}
        for case, vectors in others.items():
            for k in (1, 2, 4, 8):
                yield {"measure": case, "layer": name, "k": k,
                       "value": round(overlap(mine[:, :k], vectors[:, :RANKS[1]]), 4)}
        for rank, models in zip(RANKS, (small, large)):
            delta = models[0][name][1]
            noise = torch.randn(delta.shape, dtype=W.dtype, generator=generator)
            noise *= delta.norm() / noise.norm()
            for case, each in (("ΔW", delta), ("noise", noise)):
                yield {"measure": f"amplification by {case}", "layer": name, "k": rank,
                       "value": round(amplification(W, each, rank), 4)}


def diversity(models):
    """How many different answers among 50 at temperature 1, right and wrong apart."""
    task = tasks.load("math", tokenizer.load(), 128)
    for (method, seed), model in models.items():
        for number, (prompt, completion) in enumerate(task.val[:QUESTIONS]):
            prompts = torch.tensor([prompt] * ANSWERS)
            told = model.generate(prompts, 8, temperature=1.0, seed=number)[:, len(prompt):]
            answers = [tasks.decode(task.encoding, row).partition("\n")[0] for row in told.tolist()]
            right = tasks.decode(task.encoding, completion).strip()
            wrong = [answer for answer in answers if answer.strip() != right]
            yield {"model": method, "seed": seed, "question": number, "right": ANSWERS - len(wrong),
                   "wrong": len(wrong), "different wrong": len(set(wrong))}


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.weights", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four steps a run, one seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    args = parser.parse_args()
    runs, out = Path("out/weights"), question.RESULTS
    quick = "--steps 4 --eval_interval 4" if args.quick else ""
    if args.quick:
        runs, out = Path("out/quick/weights"), Path("out/quick")
    wanted = {("full", steps, seed): (FULL, seed, quick or f"--steps {steps}" * (steps != 1000))
              for seed in range(1 if args.quick else SEEDS) for steps in STEPS}
    wanted |= {("lora", rank, seed): (LORA, seed, f"{quick} --rank {rank}" if rank != 8 else quick)
               for rank in RANKS for seed in range(SEEDS if rank == 8 and not args.quick else 2)}
    try:
        with ThreadPoolExecutor(args.jobs) as pool:
            made = dict(zip(wanted, pool.map(lambda each: train(*each, runs), wanted.values())))
        full = {(steps, seed): where for (kind, steps, seed), where in made.items()
                if kind == "full"}
        adapters = {(rank, seed): where for (kind, rank, seed), where in made.items()
                    if kind == "lora"}
        models = {("base", 0): load_base()}
        for (kind, size, seed), where in made.items():
            if size in (8, 1000):
                models[kind, seed] = model_of(load_run(where)[1], load_base()).eval()
        for name, rows in (("perturbation", perturbation(full)), ("subspaces", subspaces(adapters)),
                           ("diversity", diversity(models))):
            rows = list(rows)
            write_csv(out / f"{name}.csv", list(rows[0]), rows)
            print(out / f"{name}.csv")
    except (InputError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on")


if __name__ == "__main__":
    main()
