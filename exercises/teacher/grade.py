"""Marks for a folder of submissions, as a CSV: a line a student, a column an exercise.

    python -m exercises.teacher.grade SUBMISSIONS_DIR
    python -m exercises.teacher.grade SUBMISSIONS_DIR --only ex06 ex08 --feedback feedback
    python -m exercises.teacher.grade SUBMISSIONS_DIR --resume       after a stop

SUBMISSIONS_DIR has a folder for each student with ex01_forward.py and so on anywhere in it, or the
files of all students side by side, as Canvas and Moodle write them (name_123_ex01_forward.py). The
CSV's first line has the points that there are. --feedback writes for each student what the graders
said.

Each submission is graded in a copy without solutions, by the teacher's graders, all with the same
inputs. Its answers run in a process that sends back numbers and nothing else. What is missing or
crashes costs its own points, and so does a function that takes more than 20 seconds. Run this in a
container or as another user where students may search this machine for the solutions.
"""
import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data.files import (InputError, about_input, command_parser, number, read_csv, replace_file,
                        run_command, write_csv)
from exercises.teacher import handout

NAMES = handout.NAMES
# "", "jane_doe_" or "doejane_123_456_", then ex1.py, ex01_forward.py, ex01_forward (1).py, ...-2.py
ANSWER = re.compile(r"(?:(?P<student>.+)_)?ex_?(?P<number>\d{1,2})(?:[-_][a-z0-9_]+?)?"
                    r"(?: ?\(\d+\)|-\d+)?\.py", re.IGNORECASE)
OF_A_STUDENT = re.compile(r"(?P<name>.+?)(?:_late)?_(?P<id>\d+)(?:_|$)", re.IGNORECASE)


def find_submissions(directory):
    """{student: the files of the submission}, from folders or from files side by side."""
    found = {}
    for path in sorted(directory.iterdir()):
        if path.name.startswith((".", "__MACOSX")):
            continue
        if path.is_dir():
            found[path.name] = [each for each in sorted(path.rglob("*"))
                                if each.is_file() and not each.is_symlink()]
            continue
        # Side by side. A file that is no answer has its student too: `collect` has a note about it.
        match = ANSWER.fullmatch(path.name)
        student = match["student"] if match else None
        of_a_student = OF_A_STUDENT.match(student or path.name)
        if of_a_student:
            student = f"{of_a_student['name']}_{of_a_student['id']}"
        if student:
            found.setdefault(student, []).append(path)
    if not found:
        raise InputError(f"{directory} holds neither folders of students nor files like "
                         "name_123_ex01_forward.py")
    return found


def collect(files):
    """Which file answers which exercise -> {name: path}, and sentences about the others."""
    by_name, notes, unknown = {}, [], []
    handed_out = {path.name for pattern in handout.GRADING + handout.TRAINING
                  for path in handout.ROOT.glob(pattern)}
    for path in files:
        match = ANSWER.fullmatch(path.name)
        names = [name for name in NAMES if match and name.startswith(f"ex{match['number']:0>2}")]
        if names and not path.name.startswith("test_"):
            by_name.setdefault(names[0], []).append(path)
        elif path.suffix in (".py", ".ipynb", ".zip", ".txt") and path.name not in handed_out:
            unknown.append(path.name)
    for name, paths in by_name.items():
        paths.sort(key=lambda path: (path.name != f"{name}.py", len(path.parts), path))
        if len(paths) > 1:
            notes.append(f"{name[:4]}: took {paths[0].name} of {len(paths)} files")
    unknown = [name for name in unknown if Path(name).stem not in by_name]  # not the notebooks
    if unknown:
        notes.append(f"not understood: {', '.join(unknown[:3])}" + " ..." * (len(unknown) > 3))
    return {name: paths[0] for name, paths in by_name.items()}, notes


def run(directory, report, args):
    """Grades the copy in a directory -> what went wrong with the whole, or nothing."""
    graders = [f"exercises/tests/test_{name[:4]}.py" for name in args.only]
    command = [sys.executable, "-m", "pytest", *graders, "--isolated", f"--report={report}",
               f"--random={args.random}", "-q", "-p", "no:cacheprovider"]
    # The answers see this environment. It must not say where the solutions are.
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("OLDPWD", "PYTHONPATH")}
    environment |= {"PWD": str(directory), "SECONDS_FOR_AN_EXERCISE": str(args.seconds)}
    process = subprocess.Popen(command, cwd=directory, env=environment, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = 300 + 2 * args.seconds * len(args.only)
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"took more than {limit} s"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # it, and what its answers have started
        except ProcessLookupError:
            pass
        process.wait()
    return "" if report.exists() else "the grader ended early"


def remarks(marks):
    """What went wrong in short, and in full: the first sentence, and all, of each exercise."""
    short, full = [], []
    for name, mark in sorted(marks.items()):
        full.append(f"{name}: {mark['got']} of {mark['points']}")
        full += [f"  {message}" for message in mark["messages"] or ["all holds"]]
        if mark["messages"]:
            first = mark["messages"][0].splitlines()[-1].removeprefix(f"{name}: ")
            short.append(f"{name[:4]}: {first[:90]}")
    return short, "\n".join(full)


def grade(student, files, args):
    """A submission -> its line of the CSV."""
    answers, notes = collect(files)
    marks, problem, full = {}, "no answers found", ""
    if answers:
        with tempfile.TemporaryDirectory(prefix="grade-") as scratch:
            directory, report = Path(scratch) / "copy", Path(scratch) / "report.json"
            handout.copy(directory, handout.GRADING)
            for name, path in answers.items():
                (directory / "exercises" / f"{name}.py").write_bytes(path.read_bytes())
            problem = run(directory, report, args)
            if report.exists():
                marks = json.loads(report.read_text(encoding="utf-8"))
    short, full = remarks(marks)
    if args.feedback:
        with replace_file(args.feedback / f"{student}.txt") as file:
            file.write("\n".join([*notes, problem or full, ""]).encode())
    row = {name: marks.get(name, {"got": 0})["got"] for name in args.only}
    remark = [problem] if problem else short
    return {"submission": student, "total": sum(row.values()), **row,
            "remark": "; ".join(notes + remark)}


def possible(args):
    """The CSV's first line: the points that there are, and how to repeat the inputs."""
    row = {name: handout.points(name) for name in args.only}
    return {"submission": "(possible)", "total": sum(row.values()), **row,
            "remark": f"--random {args.random}"}


def earlier_rows(args):
    """The rows of the CSV that an earlier call has left; its --random is taken over."""
    if not args.out.exists():
        return [possible(args)]
    if not args.resume:
        raise InputError(f"{args.out} is there already: --resume goes on with it, or choose "
                         "another --out")
    rows = read_csv(args.out)
    args.random = int(rows[0]["remark"].removeprefix("--random "))
    if list(rows[0]) != list(possible(args)):
        raise InputError(f"--resume: {args.out} is about other exercises than --only")
    return rows


def summary(rows, only):
    """How many submissions, their median, and the exercise with the lowest part of its points."""
    top, rows = rows[0], rows[1:]
    median = statistics.median(int(row["total"]) for row in rows)
    parts = {name: statistics.mean(int(row[name]) for row in rows) / int(top[name])
             for name in only}
    hardest = min(parts, key=parts.get)
    return (f"{len(rows)} submissions, median {median:g} of {top['total']} points; the lowest mean "
            f"is {hardest}'s, {parts[hardest]:.0%} of its points")


def exercise(text):
    """An argparse type: ex01, or the whole name of an exercise."""
    found = [name for name in NAMES if text and name.startswith(text)]
    if len(found) != 1:
        raise argparse.ArgumentTypeError(f"{text} is no exercise: ex01 to {NAMES[-1][:4]}")
    return found[0]


def main():
    parser = command_parser(__doc__, "python -m exercises.teacher.grade")
    parser.add_argument("directory", type=Path, metavar="SUBMISSIONS_DIR")
    parser.add_argument("--out", type=Path, default=Path("marks.csv"), help="the CSV (marks.csv)")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --out has")
    parser.add_argument("--seconds", type=number(int, 1), default=120,
                        help="for the answers of each exercise (120)")
    parser.add_argument("--random", type=number(int, 0), default=time.time_ns() % 1_000_000,
                        help="the graders' inputs, to repeat them")
    parser.add_argument("--feedback", type=Path, metavar="DIR", help="a text for each student")
    parser.add_argument("--only", nargs="+", type=exercise, default=NAMES, metavar="EX",
                        help="these exercises (all)")
    args = parser.parse_args()
    args.only = sorted(set(args.only))
    if not hasattr(os, "killpg"):
        raise InputError("this needs Linux or macOS, which can stop a process with its children")
    with about_input(f"{args.directory} cannot be read"):
        submissions = find_submissions(args.directory)
    rows = earlier_rows(args)
    done = {row["submission"] for row in rows}
    waiting = [student for student in submissions if student not in done]
    start = time.perf_counter()
    for count, student in enumerate(waiting, start=1):
        rows.append(grade(student, submissions[student], args))
        write_csv(args.out, list(rows[0]), rows)
        left = (time.perf_counter() - start) / count * (len(waiting) - count)
        print(f"{count}/{len(waiting)}  {left:.0f} s left  {student}: {rows[-1]['total']} points  "
              f"{rows[-1]['remark']}", flush=True)
    if len(rows) > 1:
        print(summary(rows, args.only))


if __name__ == "__main__":
    run_command(main)
