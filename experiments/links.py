"""What do restarts cost a chain? Links of 50 and 200 steps, and one link of all 1000, in 1000 steps.

One link is LoRA itself for Chain of LoRA, and LoRA with a frozen random B for RAC-LoRA. Each at the
rate that was best in experiments.systems.
"""
from experiments import question, systems


def variant(exercise, rate, every):
    return question.Variant(
        "lora", (rate,), module=f"exercises.train {exercise} --solutions --set EVERY={every}")


CHAINS = {"Chain of LoRA": ("ex08_chain_of_lora", 5e-3), "RAC-LoRA": ("ex09_rac_lora", 2e-2)}
VARIANTS = {f"{name}, links of {every}": variant(exercise, rate, every)
            for name, (exercise, rate) in CHAINS.items() for every in (50, 200, 1000)}
QUESTION = question.Question("links", VARIANTS, page=systems.PAGE)

if __name__ == "__main__":
    question.ask(QUESTION)
