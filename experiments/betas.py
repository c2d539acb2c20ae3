"""Does Adam's pair of betas decide as much as the method? Each method's own rates under each pair.

Three pairs: torch's default, the one that language models are trained with, and the one of the
preconditioner's authors.
"""
import curves
import train
from experiments import compare, question

PAIRS = {"0.9 0.999": (0.5, 1, 2, 4), "0.9 0.95": compare.AROUND, "0.7 0.8": (0.25, 0.5, 1, 2)}
ALWAYS = {"0.7 0.8": (0.5, 1)}  # times a method's rate: what every seed has, best or not
VARIANTS = {
    f"{method}, {pair}": question.Variant(
        method, [train.PRESETS[method]["lr"] * factor for factor in factors],
        "" if pair == "0.9 0.95" else f"--betas {pair}",
        always=[train.PRESETS[method]["lr"] * factor for factor in ALWAYS.get(pair, (1,))])
    for pair, factors in PAIRS.items() for method in compare.METHODS}


def text(found):
    """A row a method, a column a pair: the best rate, what was learned and forgotten there."""
    lines = ["| method | " + " | ".join(f"betas {pair}" for pair in PAIRS) + " |",
             "|---" * (len(PAIRS) + 1) + "|"]
    for method in compare.METHODS:
        cells = [compare.NAMES[method]]
        for pair in PAIRS:
            rates = compare.at_rates(found, f"{method}, {pair}")
            if not rates:
                cells.append("not run")
                continue
            lr, results = compare.best(rates)
            cells.append(f"{compare.spread(results, 'learned', '{:.1%}')} for "
                         f"{compare.median(results, 'forgotten'):.2f} nats, lr {lr}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found):
    figure, panels = curves.new_figure(16, 5, panels=len(PAIRS))
    for panel, pair in zip(panels, PAIRS):
        mine = [{**result, "method": result["method"].partition(",")[0]} for result in found
                if result["method"].endswith(pair)]
        compare.learned_against_forgotten(panel, mine, compare.METHODS)
        curves.in_percent(panel)
        panel.set(title=f"betas ({pair.replace(' ', ', ')})", xlim=(0.07, 40))
    curves.name_lines(figure, panels[1], columns=len(compare.METHODS))
    return figure


QUESTION = question.Question("betas", VARIANTS, text=text, draw=draw)

if __name__ == "__main__":
    question.ask(QUESTION)
