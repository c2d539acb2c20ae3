"""Does LoRA learn less, or later? Full fine-tuning and LoRA for three times as many steps."""
from experiments import question

VARIANTS = {
    "full, 1000 steps": question.Variant("full", (1.5e-3, 3e-3, 6e-3)),
    "full, 3000 steps": question.Variant("full", (1.5e-3,), "--steps 3000"),
    "LoRA, 1000 steps": question.Variant("lora", (2.5e-3, 5e-3, 1e-2)),
    "LoRA, 3000 steps": question.Variant("lora", (2.5e-3,), "--steps 3000"),
}


QUESTION = question.Question("longer", VARIANTS)

if __name__ == "__main__":
    question.ask(QUESTION)
