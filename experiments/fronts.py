"""Learned against forgotten, along the training and over the learning rates: who trades better?

On `math` (1000 steps of 32 sums) and on `code` (300 steps of 8 windows), five methods, each with
its own rate for `math`, a quarter, half, twice and four times as much; on `code` full fine-tuning,
whose least forgetting lay at the edge of these, with three lower ones.
"""
import curves
import train
from experiments import compare, question

FACTORS = (0.25, 0.5, 1, 2, 4)
DATA = {"math": "", "code": question.ON_CODE}
LEAST = {"full": 0.0625, "loraplus": 0.5}  # forgot least on `code` by the common level: all seeds


def variant(data, method):
    lr = train.PRESETS[method]["lr"]
    lower = (0.03125, 0.0625, 0.125) if (data, method) == ("code", "full") else ()
    always = (lr * LEAST.get(method, 1),) if data == "code" else ()
    return question.Variant(method, [lr * factor for factor in (*lower, *FACTORS)], DATA[data],
                            data=data, always=always)


VARIANTS = {f"{data}: {compare.NAMES[method]}": variant(data, method)
            for data in DATA for method in compare.METHODS}


def of_task(found, data):
    """{method: {learning rate: [result of each seed]}} on one of the tasks."""
    return {method: compare.at_rates(found, f"{data}: {name}")
            for method, name in compare.NAMES.items()}


def metric_of(tried):
    return next(results[0]["metric"] for rates in tried.values() for results in rates.values())


def text(found):
    tables = []
    for data in DATA:
        tried = of_task(found, data)
        level, metric = compare.common_level(tried), metric_of(tried)
        if metric == "exact match":
            level = min(0.9, level)
        told = compare.FORMS[metric].format(level)
        header = [data, "lr", metric, "forgotten, nats", f"forgotten at {metric} {told}"]
        tables.append(compare.markdown(header, [
            [compare.NAMES[method], *compare.trade(rates, level)]
            for method, rates in tried.items()]))
    return "\n\n".join(tables)


def front(results):
    """The points of all paths that no other point beats in both -> [(forgotten, learned)]."""
    points = sorted((max(docs - result["docs_before"], 0.01), metric)
                    for result in results for _, metric, docs in result["path"][1:])
    better = compare.better(results[0]["metric"])
    kept = []
    for forgotten, learned in points:
        if not kept or better(learned, kept[-1][1]) != kept[-1][1]:
            kept.append((forgotten, learned))
    return kept


def draw(found):
    figure, panels = curves.new_figure(14, 5.5, panels=2)
    for panel, data in zip(panels, DATA):
        for method, rates in of_task(found, data).items():
            color, line, marker = compare.LOOKS[method]
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
