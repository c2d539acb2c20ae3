"""Does LoRA learn less, or later? Full fine-tuning and LoRA for three times as many steps.

The longer runs have half the rate with which the shorter ones learn most; full fine-tuning's on
`math`, which forget so much, a quarter as well.
"""
from experiments import question

CODE_900 = "--steps 900 --eval_interval 150 --batch_size 8"
VARIANTS = {
    "full, 1000 steps": question.Variant("full", (1.5e-3, 3e-3, 6e-3)),
    "full, 3000 steps": question.Variant("full", (7.5e-4, 1.5e-3), "--steps 3000",
                                         always=(7.5e-4, 1.5e-3)),
    "LoRA, 1000 steps": question.Variant("lora", (2.5e-3, 5e-3, 1e-2)),
    "LoRA, 3000 steps": question.Variant("lora", (2.5e-3,), "--steps 3000"),
    "code: full, 300 steps": question.Variant("full", (3.75e-4, 7.5e-4, 1.5e-3, 3e-3),
                                              question.ON_CODE, data="code"),
    "code: full, 900 steps": question.Variant("full", (7.5e-4,), CODE_900, data="code"),
    "code: LoRA, 300 steps": question.Variant("lora", (5e-3, 1e-2, 2e-2), question.ON_CODE,
                                              data="code"),
    "code: LoRA, 900 steps": question.Variant("lora", (5e-3,), CODE_900, data="code"),
}


QUESTION = question.Question("longer", VARIANTS)

if __name__ == "__main__":
    question.ask(QUESTION)
