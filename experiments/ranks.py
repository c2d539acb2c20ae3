"""LoRA §7.2: is a very small rank enough? s = 1 at every rank, three learning rates each."""
from experiments import question

RANKS = (1, 2, 4, 8, 32, 128)
VARIANTS = {f"r {rank}": question.Variant("lora", (2.5e-3, 5e-3, 1e-2),
                                          "" if rank == 8 else f"--rank {rank}")
            for rank in RANKS}


QUESTION = question.Question("ranks", VARIANTS)

if __name__ == "__main__":
    question.ask(QUESTION)
