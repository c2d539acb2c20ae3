"""Does LoRA regularise more than weight decay and dropout? Full fine-tuning with both, and LoRA.

At full fine-tuning's own best rate, since another rate changes what is forgotten by itself. The
paper's weight decays, up to 1e-4, take 0.015 % of the weights away at this rate in 1000 steps, so
here are stronger ones; its dropouts are 0.05 and 0.1.
"""
from experiments import question

RATES = (3e-3,)
VARIANTS = {"LoRA": question.Variant("lora", (5e-3,)), "full": question.Variant("full", RATES)}
VARIANTS |= {f"full, weight decay {decay}": question.Variant("full", RATES,
                                                             f"--weight_decay {decay}")
             for decay in ("0.1", "1")}
VARIANTS |= {f"full, dropout {share}": question.Variant("full", RATES, f"--model_dropout {share}")
             for share in ("0.1", "0.3")}


QUESTION = question.Question("regularisation", VARIANTS)

if __name__ == "__main__":
    question.ask(QUESTION)
