"""Learned against forgotten, along the training and over five learning rates: who trades better?

On `math` (1000 steps of 32 sums) and on `code` (300 steps of 8 windows), five methods, each with
its own rate for `math`, a quarter, half, twice and four times as much.
"""
import curves
import train
from experiments import compare, question

FACTORS = (0.25, 0.5, 1, 2, 4)
DATA = {"math": "", "code": question.ON_CODE}
LEAST = {"full": 0.0625, "loraplus": 0.5}  # forgot least on `code` by the common level: all seeds
VARIANTS = {}
for data, flags in DATA.items():
    for method, name in compare.NAMES.items():
        lr = train.PRESETS[method]["lr"]
        factors = FACTORS
        if (data, method) == ("code", "full"):  # whose least forgetting lay at the edge
            factors = (0.03125, 0.0625, 0.125, *FACTORS)
        VARIANTS[f"{data}: {name}"] = question.Variant(
            method, [lr * factor for factor in factors], flags, data=data,
            always=(lr * LEAST.get(method, 1),) if data == "code" else ())


def of_task(found, data):
    """{method: {learning rate: [result of each seed]}} on one of the tasks."""
    return {method: compare.at_rates(found, f"{data}: {name}")
            for method, name in compare.NAMES.items()}


def common_level(tried):
    """What every method has learned at its best rate, in the median: nine tenths, or a loss."""
    best = [compare.median(rates[compare.best_rate(rates)], "learned") for rates in tried.values()]
    return min(0.9, *best) if metric_of(tried) == "exact match" else max(best)


def metric_of(tried):
    return next(results[0]["metric"] for rates in tried.values() for results in rates.values())


def text(found):
    lines = []
    for data in DATA:
        tried = of_task(found, data)
        level, metric = common_level(tried), metric_of(tried)
        form = "{:.1%}" if metric == "exact match" else "{:.3f}"
        lines += [f"| {data} | lr | {metric} | forgotten, nats | forgotten at {metric} "
                  f"{form.format(level)} |", "|---|---|---|---|---|"]
        for method, rates in tried.items():
            cells = [compare.NAMES[method], *compare.trade(rates, level, form)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def front(results):
    """The points of all paths that no other point beats in both -> [(forgotten, learned)]."""
    points = sorted((max(docs - result["docs_before"], 0.01), metric)
                    for result in results for _, metric, docs in result["path"][1:])
    better = max if results[0]["metric"] == "exact match" else min
    kept = []
    for forgotten, learned in points:
        if not kept or better(learned, kept[-1][1]) != kept[-1][1]:
            kept.append((forgotten, learned))
    return kept


def draw(found):
    figure, panels = curves.new_figure(14, 5.5, panels=2)
    for panel, data in zip(panels, DATA):
        for (method, rates), (color, line, marker) in zip(of_task(found, data).items(),
                                                          curves.LOOKS):
            every = [result for results in rates.values() for result in results]
            forgotten, learned = zip(*front(every))
            panel.step(forgotten, learned, where="post", color=color, linestyle=line,
                       marker=marker, label=compare.NAMES[method])
        panel.set(xscale="log", xlabel=curves.FORGOTTEN, title=data,
                  ylabel=curves.learned(every[0]["metric"]))
        panel.xaxis.set_major_formatter("{x:g}")
    curves.in_percent(panels[0])
    curves.name_lines(figure, panels[0], columns=len(compare.METHODS))
    return figure


QUESTION = question.Question("fronts", VARIANTS, text=text, draw=draw)

if __name__ == "__main__":
    question.ask(QUESTION)
