"""LoRA §7.1 and "learns less" fig. 7: where should a budget of parameters go?

The layers' names: c_attn and attn.c_proj are attention's, c_fc and mlp.c_proj the MLP's.
"""
from experiments import question

RATES = (2.5e-3, 5e-3, 1e-2)
VARIANTS = {
    "all, r 8: 131,072": question.Variant("lora", RATES),
    "attention, r 21: 129,024": question.Variant(
        "lora", RATES, "--rank 21 --targets c_attn attn.c_proj"),
    "MLP, r 13: 133,120": question.Variant("lora", RATES, "--rank 13 --targets c_fc mlp.c_proj"),
}


QUESTION = question.Question("targets", VARIANTS)

if __name__ == "__main__":
    question.ask(QUESTION)
