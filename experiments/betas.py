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
        question.flag("betas", pair, "0.9 0.95"),
        always=[train.PRESETS[method]["lr"] * factor for factor in ALWAYS.get(pair, (1,))])
    for pair, factors in PAIRS.items() for method in compare.METHODS}


def text(found):
    """A row a method, a column a pair: what was learned and forgotten at the best rate; and what
    had been forgotten when nine tenths were first learned."""
    def at_best(rates):
        lr, results = compare.best(rates)
        return f"{compare.spread(results, 'learned', '{:.1%}')} for " \
               f"{compare.median(results, 'forgotten'):.2f} nats, lr {lr}"

    def table(first, cell):
        rows = [[compare.NAMES[method], *(cell(compare.at_rates(found, f"{method}, {pair}"))
                                          for pair in PAIRS)] for method in compare.METHODS]
        return compare.markdown([first, *(f"betas {pair}" for pair in PAIRS)], rows)

    equal = table("forgotten at 90 %, nats", lambda rates: compare.at_level(rates, 0.9))
    return f"{table('at the best rate', at_best)}\n\n{equal}"


def draw(found):
    figure, panels = curves.new_figure(16, 5, panels=len(PAIRS))
    for panel, pair in zip(panels, PAIRS):
        mine = [{**result, "method": result["method"].partition(",")[0]} for result in found
                if result["method"].endswith(pair)]
        compare.learned_against_forgotten(panel, mine, compare.METHODS)
        curves.in_percent(panel)
        panel.set(title=f"betas ({pair.replace(' ', ', ')})")
    low, high = zip(*(panel.get_xlim() for panel in panels))
    for panel in panels:
        panel.set_xlim(min(low), max(high))  # one scale for all
    curves.name_lines(figure, panels[1], columns=len(compare.METHODS))
    return figure


QUESTION = question.Question("betas", VARIANTS, text=text, draw=draw)

if __name__ == "__main__":
    question.ask(QUESTION)
