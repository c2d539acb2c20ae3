"""LoRA §7.1 and "learns less" fig. 7: where should a budget of parameters go?

The layers' names: c_attn and attn.c_proj are attention's, c_fc and mlp.c_proj the MLP's.
"""
from experiments import question

BUDGETS = {  # as near to 131,072 as whole ranks come
    "all, r 8": "",
    "attention, r 21": "--rank 21 --targets c_attn attn.c_proj",
    "MLP, r 13": "--rank 13 --targets c_fc mlp.c_proj",
}
RATES = (2.5e-3, 5e-3, 1e-2)
MORE = {"MLP, r 13": (2e-2,)}  # its best is higher
FOR_CODE = (5e-3, 1e-2, 2e-2)
VARIANTS = {name: question.Variant("lora", RATES + MORE.get(name, ()), flags)
            for name, flags in BUDGETS.items()}
VARIANTS |= {f"code: {name}": question.Variant("lora", FOR_CODE, f"{flags} {question.ON_CODE}",
                                               data="code") for name, flags in BUDGETS.items()}


QUESTION = question.Question("targets", VARIANTS)

if __name__ == "__main__":
    question.ask(QUESTION)
