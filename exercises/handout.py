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
LEFT_OUT = ("solutions", "answers", "__pycache__", "cache", "out")


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
    for name in ("exercises", "data"):
        shutil.copytree(ROOT / name, directory / name,
                        ignore=lambda _, names: [each for each in names if each in LEFT_OUT])
    for path in [*ROOT.glob("*.py"), ROOT / "requirements.txt", ROOT / "LICENSE"]:
        if not path.name.startswith("test_"):
            shutil.copy(path, directory / path.name)
    for name in ("handout.py", "grade.py", "figures.py"):
        (directory / "exercises" / name).unlink(missing_ok=True)
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
