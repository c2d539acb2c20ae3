"""What would a comparison at one learning rate for all have found, beside one at each one's own?"""
import train
from experiments import compare, question

SHARED = 1e-3
OWN = {name: train.PRESETS[method]["lr"] for method, name in compare.NAMES.items()}
VARIANTS = {name: question.Variant(method, sorted({SHARED, OWN[name]}))
            for method, name in compare.NAMES.items()}


def text(found):
    def cell(rates, lr):
        if lr not in rates:  # in a quick look
            return "not run"
        return f"{compare.spread(rates[lr], 'learned', '{:.1%}')} for " \
               f"{compare.median(rates[lr], 'forgotten'):.2f} nats"

    rows = []
    for name, own in OWN.items():
        rates = compare.at_rates(found, name)
        rows.append([name, cell(rates, SHARED), f"{cell(rates, own)}, lr {own:g}"])
    return compare.markdown(["method", f"all with lr {SHARED:g}", "each with its own"], rows)


QUESTION = question.Question("shared", VARIANTS, every_rate=True, text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
