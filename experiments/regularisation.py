"""Does LoRA regularise more than weight decay and dropout? Full fine-tuning with both, and LoRA.

The paper's weight decays and dropouts, and stronger ones, at full fine-tuning's own two best rates.
"""
from experiments import question

RATES = (1.5e-3, 3e-3)
VARIANTS = {"LoRA": question.Variant("lora", (2.5e-3, 5e-3)),
            "full": question.Variant("full", RATES)}
VARIANTS |= {f"full, weight decay {decay}": question.Variant("full", RATES,
                                                             f"--weight_decay {decay}")
             for decay in ("0.0001", "0.1", "1")}
VARIANTS |= {f"full, dropout {share}": question.Variant("full", RATES, f"--model_dropout {share}")
             for share in ("0.05", "0.1", "0.3")}


QUESTION = question.Question("regularisation", VARIANTS)

if __name__ == "__main__":
    question.ask(QUESTION)
