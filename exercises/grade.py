"""Marks for a folder of submissions, as a CSV: a line a student, a column an exercise.

    python -m exercises.grade SUBMISSIONS_DIR
    python -m exercises.grade SUBMISSIONS_DIR --out marks.csv --feedback feedback --random 7

The first line has what there is to get. --feedback writes for each student what the graders said.
A submission is a directory that holds ex01_forward.py and so on, anywhere within it. Each is graded
in a copy of its own without solutions, by the teacher's graders, all with the same inputs; its
answers run in yet another process, which sends numbers back and nothing else. What is missing or
crashes costs its own points, and so does a function that takes more than 20 seconds, which is not
asked again; a submission that takes more than --seconds gets none, and the remark says so. Against
someone who attacks the machine itself, run this in a container.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data.files import InputError, replace_file, write_csv
from exercises import handout
from runs import number

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("ex*.py"))


def collect(submission, directory):
    """Copies a submission's answers over the stubs; without one, the stub stays -> their number."""
    count = 0
    for name in NAMES:
        found = sorted(submission.rglob(f"{name}.py"), key=lambda path: (len(path.parts), path))
        if found and found[0].is_file() and not found[0].is_symlink():
            (directory / "exercises" / f"{name}.py").write_bytes(found[0].read_bytes())
            count += 1
    return count


def run(directory, report, args, *more):
    """Grades the copy in a directory -> what went wrong with the whole, or nothing."""
    graders = [f"exercises/test_{name[:4]}.py" for name in args.only]
    command = [sys.executable, "-m", "pytest", *graders, "--isolated", f"--report={report}",
               f"--random={args.random}", "-q", "-p", "no:cacheprovider", *more]
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(args.seconds)
    except subprocess.TimeoutExpired:
        return f"took more than {args.seconds} s"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # it, and what its answers have started
        except ProcessLookupError:
            pass
        process.wait()
    return "" if report.exists() else "the grader ended early"


def remarks(points):
    """What went wrong in short, and in full: the first sentence, and all, of each exercise."""
    said = {name: each["messages"] for name, each in points.items() if each["messages"]}
    last_lines = [messages[0].splitlines()[-1] for messages in said.values()]
    first = [line.removeprefix(f"{name}: ") for name, line in zip(said, last_lines)]
    short = "; ".join(f"{name[:4]}: {text[:90]}" for name, text in zip(said, first))
    full = "\n\n".join(f"{name}: {each['got']} of {each['points']}\n  "
                       + "\n  ".join(each["messages"] or ["all holds"])
                       for name, each in points.items())
    return short, full


def marks(submission, args):
    """A submission -> its line of the CSV, and what the line of all points has."""
    with tempfile.TemporaryDirectory(prefix="grade-") as scratch:
        copy, report = Path(scratch) / "copy", Path(scratch) / "report.json"
        handout.write(copy)
        count = collect(submission, copy)
        remark = run(copy, report, args) if count else "no answers found"
        points = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    short, full = remarks(points)
    if args.feedback:
        with replace_file(args.feedback / f"{submission.name}.txt") as file:
            file.write(f"{full or remark}\n".encode())
    row = {name: points.get(name, {"got": 0})["got"] for name in args.only}
    return {"submission": submission.name, "total": sum(row.values()), **row,
            "remark": remark or short}


def possible(args):
    """The line of what there is to get, from the solutions."""
    with tempfile.TemporaryDirectory(prefix="grade-") as scratch:
        report = Path(scratch) / "report.json"
        run(HERE.parent, report, args, "--solutions")
        points = json.loads(report.read_text(encoding="utf-8"))
    row = {name: points[name]["points"] for name in args.only}
    return {"submission": "(possible)", "total": sum(row.values()), **row,
            "remark": f"--random {args.random}"}


def main():
    parser = argparse.ArgumentParser(prog="python -m exercises.grade", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.add_argument("directory", type=Path, metavar="SUBMISSIONS_DIR")
    parser.add_argument("--out", type=Path, default=Path("marks.csv"), help="the CSV (marks.csv)")
    parser.add_argument("--seconds", type=number(int, 1), default=300, help="for each (300)")
    parser.add_argument("--random", type=number(int, 0), default=time.time_ns() % 1_000_000,
                        help="the graders' inputs, to repeat them")
    parser.add_argument("--feedback", type=Path, metavar="DIR", help="a text for each, in there")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME",
                        help="these exercises (all)")
    args = parser.parse_args()
    if not args.directory.is_dir():
        parser.error(f"{args.directory} is not a directory")
    submissions = sorted(path for path in args.directory.iterdir() if path.is_dir())
    if not submissions:
        parser.error(f"{args.directory} holds no directories: one for each submission")
    try:
        rows, start = [possible(args)], time.perf_counter()
        for submission in submissions:
            rows.append(marks(submission, args))
            write_csv(args.out, list(rows[0]), rows)
            count = len(rows) - 1
            left = (time.perf_counter() - start) / count * (len(submissions) - count)
            print(f"{count}/{len(submissions)}  {left:.0f} s left  {submission.name}: "
                  f"{rows[-1]['total']} points  {rows[-1]['remark']}", flush=True)
    except (InputError, OSError) as error:
        parser.error(error)


if __name__ == "__main__":
    main()
