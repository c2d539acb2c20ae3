"""What do LoRA's ΔW of different ranks and seeds share, and what does ΔW amplify? (LoRA, §7.2, 7.3)

Right singular vectors of ΔW, ranks 8 and 64, beside random directions.
"""
import torch

from experiments import trained

RANKS = (8, 64)
FIRST = (1, 2, 4, 8)
RUNS = {(rank, seed): (trained.LORA, seed, f"--rank {rank}" * (rank != 8))
        for rank in RANKS for seed in range(2)}


def overlap(U, V):
    """φ = ‖UᵀV‖²_F / min(i, j) of orthonormal columns U (d, i), V (d, j): 1 if one holds the other.
    """
    return ((U.T @ V).square().sum() / min(U.shape[1], V.shape[1])).item()


def amplification(W, delta, rank):
    """‖ΔW‖_F / ‖UᵀWV‖_F, U and V (d, rank) the singular vectors of ΔW: by how much ΔW amplifies
    what W does in its directions."""
    U, _, Vh = torch.linalg.svd(delta, full_matrices=False)
    return (delta.norm() / (U[:, :rank].T @ W @ Vh[:rank].T).norm()).item()


def right_vectors(delta, rank):
    """The first singular vectors of ΔW in the inputs, (d_in, rank)."""
    return torch.linalg.svd(delta, full_matrices=False)[2][:rank].T


def rows(runs):
    (small, other_small), (large, other_large) = (
        [trained.deltas(runs[rank, seed]) for seed in range(2)] for rank in RANKS)
    generator = torch.Generator().manual_seed(0)
    for name, (W, delta) in small.items():
        noise = torch.randn(W.shape[1], RANKS[1], dtype=W.dtype, generator=generator)
        mine = right_vectors(delta, RANKS[0])
        others = {"in r 64, same seed": right_vectors(large[name][1], RANKS[1]),
                  "in r 64, another seed": right_vectors(other_large[name][1], RANKS[1]),
                  "in 64 random directions": torch.linalg.qr(noise)[0],
                  "in r 8, another seed": right_vectors(other_small[name][1], RANKS[0]),
                  "in 8 random directions": torch.linalg.qr(noise[:, :RANKS[0]])[0]}
        for case, vectors in others.items():
            for k in FIRST:
                yield {"measure": "φ", "case": case, "layer": name, "k": k,
                       "value": round(overlap(mine[:, :k], vectors), 4)}
        for rank, each in zip(RANKS, (delta, large[name][1])):
            noise = torch.randn(each.shape, dtype=W.dtype, generator=generator)
            noise *= each.norm() / noise.norm()
            for case, matrix in ((f"r {rank}", each), (f"noise as large as r {rank}'s", noise)):
                yield {"measure": "amplification", "case": case, "layer": name, "k": rank,
                       "value": round(amplification(W, matrix, rank), 4)}


def of(rows, measure):
    return trained.groups([row for row in rows if row["measure"] == measure], "case", "k")


def text(rows):
    shared, amplified = of(rows, "φ"), of(rows, "amplification")
    lines = ["| φ of the first k directions of r 8 | "
             + " | ".join(f"k = {k}" for k in FIRST) + " |", "|---" * (len(FIRST) + 1) + "|"]
    for case in dict.fromkeys(case for case, _ in shared):
        cells = [trained.spread(shared[case, str(k)], "value", "{:.2f}") for k in FIRST]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    lines += ["", "| ΔW | ‖ΔW‖ / ‖UᵀW0V‖ |", "|---|---|"]
    lines += [f"| {case} | {trained.spread(mine, 'value', '{:.1f}')} |"
              for (case, _), mine in amplified.items()]
    return "\n".join(lines)


QUESTION = trained.Measurement("subspaces", RUNS, rows, text)

if __name__ == "__main__":
    trained.ask(QUESTION)
