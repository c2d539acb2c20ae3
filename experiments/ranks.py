"""LoRA §7.2: is a very small rank enough? s = 1 at every rank, three learning rates each."""
from experiments import question

DATA = {"math": ("", (2.5e-3, 5e-3, 1e-2)), "code": (question.ON_CODE, (5e-3, 1e-2, 2e-2))}
VARIANTS = {
    f"{data}: r {rank}": question.Variant(
        "lora", rates, f"--rank {rank} {flags}" if rank != 8 else flags, data=data)
    for data, (flags, rates) in DATA.items() for rank in (1, 8, 32, 128)}


QUESTION = question.Question("ranks", VARIANTS)

if __name__ == "__main__":
    question.ask(QUESTION)
