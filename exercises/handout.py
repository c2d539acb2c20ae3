"""Writes a copy for students: all that `pytest exercises` and training need, without solutions.

    python -m exercises.handout DIR
    python -m exercises.handout --stubs     after a change of a solution: makes its stub again

A stub is its solution with the bodies of the functions that are to be written taken out.
"""
import argparse
import ast
import shutil
import sys
from pathlib import Path

from data.files import InputError, replace_file

ROOT = Path(__file__).parents[1]
SOLUTIONS = Path(__file__).with_name("solutions")
HANDED_OUT = ("*.py", "requirements.txt", "LICENSE", "data/*.py", "data/README.md", "data/base.pt",
              "data/tokenizer.tiktoken", "data/e2e_sample.jsonl", "exercises/__init__.py",
              "exercises/checks.py", "exercises/conftest.py", "exercises/train.py",
              "exercises/worker.py", "exercises/README.md", "exercises/figures/*.svg",
              "experiments/__init__.py", "experiments/plot.py", "experiments/compare.py",
              "experiments/sweep.py")


def stub(source):
    """A solution's text -> the stub's: functions in its list TO_WRITE lose their bodies."""
    lines, tree = source.splitlines(), ast.parse(source)
    wanted = next(ast.literal_eval(node.value) for node in tree.body
                  if isinstance(node, ast.Assign) and node.targets[0].id == "TO_WRITE")
    functions = [node for node in tree.body
                 if isinstance(node, ast.FunctionDef) and node.name in wanted]
    for node in reversed(functions):
        docstring = node.body[0]
        lines[docstring.end_lineno:node.end_lineno] = ["    raise NotImplementedError"]
    return "\n".join(lines) + "\n"


def write_stubs(directory):
    for path in sorted(SOLUTIONS.glob("ex*.py")):
        with replace_file(Path(directory) / path.name) as file:
            file.write(stub(path.read_text(encoding="utf-8")).encode())


def write(directory):
    """The students' copy, in a directory that is empty or not there."""
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory} is not empty")
    graders = [f"exercises/test_{path.name[:4]}.py" for path in SOLUTIONS.glob("ex*.py")]
    for pattern in (*HANDED_OUT, *graders):  # and nothing else that may lie about
        for path in ROOT.glob(pattern):
            if path.parent != ROOT or not path.name.startswith("test_"):
                copy = directory / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
    readme = directory / "exercises" / "README.md"
    for_students = readme.read_text(encoding="utf-8").partition("\n## For teachers")[0]
    readme.write_text(for_students, encoding="utf-8")
    write_stubs(directory / "exercises")  # whatever a teacher has tried in the stubs


def main():
    parser = argparse.ArgumentParser(prog="python -m exercises.handout", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", metavar="DIR", help="an empty or new directory")
    parser.add_argument("--stubs", action="store_true", help="write this project's stubs again")
    args = parser.parse_args()
    if not args.stubs and not args.directory:
        parser.exit(2, f"{parser.prog}: give a DIR to write to\n")
    try:
        if args.stubs:
            write_stubs(Path(__file__).parent)
        if args.directory:
            write(args.directory)
            print(f"{args.directory}: pip install -r requirements.txt && pytest exercises")
    except (InputError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
