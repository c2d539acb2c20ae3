"""What do restarts cost a chain? Links of 25 to 200 steps, and one link of all 1000, in 1000 steps.

One link is LoRA itself for Chain of LoRA, LoRA with a frozen random B for RAC-LoRA, and LoRA of
rank 1 in half of the layers for XGBLoRA. Each at the rate that was best in experiments.systems.
"""
from experiments import question, systems

CHAINS = {  # name: exercise, learning rate, the constant, the steps of a link
    "Chain of LoRA": ("ex08_chain_of_lora", 5e-3, "EVERY", (50, 200, 1000)),
    "RAC-LoRA": ("ex09_rac_lora", 2e-2, "EVERY", (50, 200, 1000)),
    "XGBLoRA": ("ex10_xgblora", 3e-2, "ROUND", (25, 100, 1000)),
}
VARIANTS = {
    f"{name}, links of {steps}": question.Variant(
        "lora", (rate,), module=f"exercises.train {exercise} --solutions --set {constant}={steps}")
    for name, (exercise, rate, constant, lengths) in CHAINS.items() for steps in lengths}
QUESTION = question.Question("links", VARIANTS, page=systems.PAGE)

if __name__ == "__main__":
    question.ask(QUESTION)
