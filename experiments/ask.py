"""Answers a question of experiments/questions/ with trained models: a table, sometimes a figure.

    python -m experiments.ask                     the questions
    python -m experiments.ask ranks               makes the runs that are missing, prints the table
    python -m experiments.ask ranks --stored      no runs: the table of the stored rows
    python -m experiments.ask ranks --quick       two steps a run and one seed, in out/quick

Rows go to results/runs.csv, the table to its place in the page that has one (evidence.md, or the
exercises' README), the figure to figures/. A stopped command goes on where it was.
"""
from pathlib import Path

from data.files import InputError, command_parser, read_csv, run_command, write_csv
from experiments import plot, question, sweep, trained
from experiments.questions import forgetting, lora, lora_ga, lora_plus, practice, preconditioner

FILES = (lora, lora_plus, lora_ga, preconditioner, forgetting, practice)
QUESTIONS = {each.name: each for file in FILES for each in file.QUESTIONS}
HERE = Path(__file__).parent
QUICK = Path("out/quick")


def check_data(variants):
    """Raises InputError for data that has to be prepared first."""
    for data in {variant.data for variant in variants}:
        path, _ = question.DATA[data]
        if data in question.PREPARED and not Path(path).exists():
            raise InputError(f"{path} is missing: python -m data.prepare {question.PREPARED[data]} "
                             "makes it")


def answer(asked, args):
    """The results of a question, after the runs that are missing."""
    if args.stored:
        return asked.stored()
    if args.quick:
        asked, seeds, more, table, known = asked.quick(), 1, question.QUICK, QUICK / "runs.csv", ()
    else:
        seeds, more, table = 3, "", question.RESULTS / "runs.csv"
        known = question.RESULTS.rglob("*/runs.csv")
    check_data(asked.variants.values())
    known = list(known)
    plan = asked.plan(seeds, more)
    first = [flags for flags, (_, _, seed) in plan.items() if seed == 0]
    rows = sweep.sweep(first, table, args.jobs, known)
    rows = sweep.sweep(asked.later(plan, rows), table, args.jobs, known)
    return asked.results(plan, rows)


def measure(asked, args):
    """The rows of a measurement, after the runs that are missing."""
    if args.stored:
        return asked.stored()
    check_data(variant for variant, _, _ in asked.runs.values())
    folder, more, path = Path("out/trained"), "", question.RESULTS / f"{asked.name}.csv"
    if args.quick:
        folder, more, path = QUICK / "trained", question.QUICK, QUICK / f"{asked.name}.csv"
    directories = trained.train_all(asked.runs, folder, more, args.jobs)
    rows = list(asked.rows(directories))
    write_csv(path, list(rows[0]), rows)
    return read_csv(path)


def main():
    parser = command_parser(__doc__, "python -m experiments.ask")
    parser.add_argument("name", nargs="?", choices=QUESTIONS, metavar="QUESTION")
    parser.add_argument("--quick", action="store_true", help="two steps a run and one seed")
    parser.add_argument("--stored", action="store_true", help="no runs, only the stored rows")
    sweep.add_jobs(parser)
    args = parser.parse_args()
    if args.name is None:
        print("\n".join(QUESTIONS))
        return
    asked = QUESTIONS[args.name]
    found = (measure if isinstance(asked, question.Measurement) else answer)(asked, args)
    table = asked.table(found)
    print(f"\n{table}\n")
    if not args.quick:
        question.put(asked.name, table)
    if asked.draw is not None and plot.available():
        folder = QUICK if args.quick else HERE / "figures"
        plot.write(asked.draw(found), folder / f"{asked.name}.svg")


if __name__ == "__main__":
    run_command(main)
