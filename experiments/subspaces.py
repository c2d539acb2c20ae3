"""What do LoRA's ΔW of different ranks and seeds share, and what does ΔW amplify? (LoRA, §7.2, 7.3)

Right singular vectors of ΔW, ranks 8 and 64, beside random directions.
"""
import torch

from experiments import compare, question, trained

RANKS = (8, 64)
FIRST = (1, 2, 4, 8)
RUNS = {(rank, seed): (trained.LORA, seed, question.flag("rank", rank, 8))
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


def random_like(matrix):
    return torch.randn(matrix.shape, dtype=matrix.dtype,
                       generator=torch.Generator().manual_seed(0))


def others(of_rank):
    """ΔW by (rank, seed) -> the other subspaces, each with the name of its case."""
    small, large = RANKS
    noise = random_like(of_rank[small, 0])
    return {"in r 64, same seed": right_vectors(of_rank[large, 0], large),
            "in r 64, another seed": right_vectors(of_rank[large, 1], large),
            "in 64 random directions": right_vectors(noise, large),
            "in r 8, another seed": right_vectors(of_rank[small, 1], small),
            "in 8 random directions": right_vectors(noise, small)}


def rows(runs):
    deltas = {key: trained.deltas(directory) for key, directory in runs.items()}
    for name, (W, _) in deltas[RANKS[0], 0].items():
        of_rank = {key: layers[name][1] for key, layers in deltas.items()}
        mine = right_vectors(of_rank[RANKS[0], 0], RANKS[0])
        for case, vectors in others(of_rank).items():
            for k in FIRST:
                yield {"measure": "φ", "case": case, "layer": name, "k": k,
                       "value": round(overlap(mine[:, :k], vectors), 4)}
        for rank in RANKS:
            delta = of_rank[rank, 0]
            noise = random_like(delta)
            noise *= delta.norm() / noise.norm()
            cases = {f"r {rank}": delta, f"noise as large as r {rank}'s": noise}
            for case, matrix in cases.items():
                yield {"measure": "amplification", "case": case, "layer": name, "k": rank,
                       "value": round(amplification(W, matrix, rank), 4)}


def of(rows, measure):
    return trained.groups([row for row in rows if row["measure"] == measure], "case", "k")


def text(rows):
    shared, amplified = of(rows, "φ"), of(rows, "amplification")
    rows = [[case, *(trained.spread(shared[case, str(k)], "value", "{:.2f}") for k in FIRST)]
            for case in dict.fromkeys(case for case, _ in shared)]
    header = ["φ of the first k directions of r 8", *(f"k = {k}" for k in FIRST)]
    of_phi = compare.markdown(header, rows)
    rows = [[case, trained.spread(mine, "value", "{:.1f}")]
            for (case, _), mine in amplified.items()]
    return f"{of_phi}\n\n{compare.markdown(['ΔW', '‖ΔW‖ / ‖UᵀW0V‖'], rows)}"


QUESTION = trained.Measurement("subspaces", RUNS, rows, text)

if __name__ == "__main__":
    trained.ask(QUESTION)
