"""LoRA (arXiv 2106.09685): ranks, scales, where to adapt, and what the directions are."""
import torch

from experiments import compare, question, trained
from experiments.question import ON_CODE, Measurement, Question, Variant, flag

# ==== Is a very small rank enough? (§7.2) =========================================================

# At s = 1 a larger rank wants a smaller rate, and code wants twice math's.
RATES = {1: (5e-3, 1e-2, 2e-2), 2: (5e-3, 1e-2, 2e-2), 4: (2.5e-3, 5e-3, 1e-2),
         8: (2.5e-3, 5e-3, 1e-2), 32: (1.25e-3, 2.5e-3, 5e-3),
         128: (6.25e-4, 1.25e-3, 2.5e-3, 5e-3)}
DATA = {"math": ("", 1), "code": (ON_CODE, 2)}
LEVELS = {"math": 0.9, "code": 1.95}
FORGET_LEAST = {("math", 128): (6.25e-4,), ("code", 32): (2.5e-3,)}
ranks = {
    f"{data}: {rank}": Variant("lora", tuple(times * lr for lr in rates),
                               f"{flag('rank', rank, 8)} {flags}", data=data,
                               always=FORGET_LEAST.get((data, rank), ()))
    for data, (flags, times) in DATA.items() for rank, rates in RATES.items()}


def rank_table(found):
    rows = []
    for rank in RATES:
        row = [str(rank)]
        for data, level in LEVELS.items():
            rates = compare.at_rates(found, f"{data}: {rank}")
            lr, results = compare.at_best(rates)
            row += [lr, compare.learned(results), compare.at_level(rates, level, with_rate=False)]
        rows.append(row)
    return compare.markdown(
        ["rank", "math: lr", "exact match, %", "forgotten at 90 %", "code: lr", "loss",
         "forgotten at 1.95"], rows)


# ==== The scale s: α = r, α = 2r, a fixed α, and α/√r (rsLoRA) ===================================

BEST = {8: 1e-2, 32: 5e-3, 128: 2.5e-3}  # of α = r in short runs
SCALES = {  # {rank: flags}; multiples of these rates, higher where s is smaller
    "α = r": ({rank: "" for rank in BEST}, (0.5, 1, 2, 4)),
    "α = 2r": ({rank: f"--alpha {2 * rank}" for rank in BEST}, (0.25, 0.5, 1, 2)),
    "α = 8": ({rank: "--alpha 8" for rank in (32, 128)}, (1, 2, 4, 8, 16)),
    "α = 8, rsLoRA": ({rank: "--alpha 8 --rslora" for rank in BEST}, (0.25, 0.5, 1, 2, 4)),
}
SHORT = {"math": "--steps 200", "code": "--steps 100 --eval_interval 50 --batch_size 8"}


def scales_on(data):
    return {f"{name}, r {rank}": Variant(
                "lora", tuple(factor * BEST[rank] for factor in factors),
                f"{flag('rank', rank, 8)} {alpha} {SHORT[data]}", data=data)
            for name, (alphas, factors) in SCALES.items() for rank, alpha in alphas.items()}


# ==== Where should a budget of parameters go? (§7.1; Biderman et al., figure 7) ===================

PLACES = {  # as near to 131,072 parameters as whole ranks come
    "all, r 8": "",
    "attention, r 21": "--rank 21 --targets c_attn attn.c_proj",
    "MLP, r 13": "--rank 13 --targets c_fc mlp.c_proj",
}
HIGHER = {"MLP, r 13": (2e-2,)}
targets = {f"math: {name}": Variant("lora", (2.5e-3, 5e-3, 1e-2, *HIGHER.get(name, ())), flags)
           for name, flags in PLACES.items()}
targets |= {f"code: {name}": Variant("lora", (5e-3, 1e-2, 2e-2), f"{flags} {ON_CODE}", data="code")
            for name, flags in PLACES.items()}


# ==== What do the updates of different ranks and seeds share? (§7.2, 7.3) =========================

FIRST = (1, 8)  # directions


def overlap(U, V):
    """φ = ‖UᵀV‖²_F / min(i, j) of orthonormal columns U (d, i), V (d, j).

    It is 1 if the columns of one lie in the span of the other's, and 0 if they are orthogonal.
    """
    return ((U.T @ V).square().sum() / min(U.shape[1], V.shape[1])).item()


def amplification(W, delta, rank):
    """‖ΔW‖_F / ‖UᵀWV‖_F, U and V (d, rank) the singular vectors of ΔW."""
    U, _, Vh = torch.linalg.svd(delta, full_matrices=False)
    return (delta.norm() / (U[:, :rank].T @ W @ Vh[:rank].T).norm()).item()


def right_vectors(delta, rank):
    """ΔW's first singular vectors on the side of the inputs, (d_in, rank)."""
    return torch.linalg.svd(delta, full_matrices=False)[2][:rank].T


def measure_subspaces(runs):
    deltas = {key: trained.deltas(directory) for key, directory in runs.items()}
    for name, (W, delta) in deltas[8, 0].items():
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(delta.shape, dtype=delta.dtype, generator=generator)
        mine = right_vectors(delta, 8)
        others = {"in r 8, another seed": right_vectors(deltas[8, 1][name][1], 8),
                  "in 8 random directions": right_vectors(noise, 8),
                  "in r 64, another seed": right_vectors(deltas[64, 1][name][1], 64),
                  "in 64 random directions": right_vectors(noise, 64)}
        for case, vectors in others.items():
            for k in FIRST:
                yield {"measure": "φ", "case": case, "layer": name, "k": k,
                       "value": round(overlap(mine[:, :k], vectors), 4)}
        for rank in (8, 64):
            delta = deltas[rank, 0][name][1]
            as_large = noise * delta.norm() / noise.norm()
            for case, matrix in ((f"r {rank}", delta), (f"noise as large as r {rank}'s", as_large)):
                yield {"measure": "amplification", "case": case, "layer": name, "k": rank,
                       "value": round(amplification(W, matrix, rank), 4)}


def subspace_table(rows):
    found = question.groups(rows, "measure", "case", "k")

    def cell(measure, case, k, form):
        return compare.spread([float(row["value"]) for row in found[measure, case, str(k)]], form)

    shared = [[case, *(cell("φ", case, k, "{:.2f}") for k in FIRST)]
              for measure, case, k in found if measure == "φ" and k == "1"]
    amplified = [[case, cell("amplification", case, k, "{:.1f}")]
                 for measure, case, k in found if measure == "amplification"]
    header = ["share of ΔW (r 8) that lies", "first direction", "all eight"]
    return (f"{compare.markdown(header, shared)}\n\n"
            f"{compare.markdown(['ΔW', '‖ΔW‖ / ‖UᵀW0V‖'], amplified)}")


SUBSPACES = {(rank, seed): (trained.LORA, seed, flag("rank", rank, 8))
             for rank in (8, 64) for seed in range(2)}
QUESTIONS = (
    Question("ranks", ranks, rank_table),
    Question("scales", scales_on("math"), "math", metric="loss", choose=compare.learned_most),
    Question("scales_on_code", scales_on("code"), "code", choose=compare.learned_most),
    Question("targets", targets, "what is adapted"),
    Measurement("subspaces", SUBSPACES, measure_subspaces, subspace_table),
)
