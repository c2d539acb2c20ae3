"""Writes a copy for students: everything that grading and training need, without solutions.

    python -m exercises.teacher.handout DIR

The copy has a README.md, a pytest.ini, a .gitignore, notebooks for exercises 1 to 5, and a workflow
for GitHub Classroom.
"""
import ast
import json
import shutil
from pathlib import Path

from data.files import InputError, about_input, command_parser, run_command

ROOT = Path(__file__).parents[2]
EXERCISES = ROOT / "exercises"
FILES = Path(__file__).with_name("handout")
NAMES = sorted(path.stem for path in EXERCISES.glob("ex*.py"))
GRADING = ("*.py", "data/*.py", "exercises/__init__.py", "exercises/ex*.py", "exercises/tests/*.py")
TRAINING = ("requirements.txt", "LICENSE", "data/README.md", "data/base.pt", "data/docs_val.bin",
            "data/tokenizer.tiktoken", "data/e2e_sample.jsonl", "exercises/train.py",
            "exercises/README.md", "exercises/figures/*.svg", "experiments/__init__.py",
            "experiments/plot.py", "experiments/compare.py", "experiments/sweep.py")
GRADING_STEP = """\
    - id: {id}
      uses: classroom-resources/autograding-command-grader@v1
      with:
        test-name: {name}
        command: pytest exercises -k {id} --isolated
        timeout: 10
        max-score: {points}
"""
RESULT = '        {ID}_RESULTS: "${{{{ steps.{id}.outputs.result }}}}"\n'
WORKFLOW = """\
name: Grading
on: [push, repository_dispatch]
permissions: {{checks: write, actions: read, contents: read}}
jobs:
  grading:
    runs-on: ubuntu-latest
    timeout-minutes: 60
    if: github.actor != 'github-classroom[bot]'
    steps:
    - uses: actions/checkout@v4
      with: {{fetch-depth: 0}}
    - uses: actions/setup-python@v5
      with: {{python-version: "3.12"}}
    - run: pip install -r requirements.txt --extra-index-url https://download.pytorch.org/whl/cpu
    # The graders of the first commit, which is the teacher's.
    - run: git checkout $(git rev-list --max-parents=0 HEAD | tail -1) -- exercises/tests
{steps}    - uses: classroom-resources/autograding-grading-reporter@v1
      env:
{results}      with: {{runners: "{runners}"}}
"""


def copy(directory, patterns):
    """Copies this project's files of some patterns, and of the others none."""
    for pattern in patterns:
        for path in ROOT.glob(pattern):
            if path.parent != ROOT or not path.name.startswith("test_"):
                target = Path(directory) / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def points(name):
    """What an exercise is worth: one point a test, or what its mark says."""
    total = 0
    grader = EXERCISES / "tests" / f"test_{name[:4]}.py"
    for node in ast.parse(grader.read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [mark.args[0].value for mark in node.decorator_list
                     if isinstance(mark, ast.Call) and mark.func.attr == "points"]
            total += marks[0] if marks else 1
    return total


def workflow():
    """The text of a workflow that grades every exercise on its own."""
    steps = [GRADING_STEP.format(id=name[:4], name=name, points=points(name)) for name in NAMES]
    results = [RESULT.format(ID=name[:4].upper(), id=name[:4]) for name in NAMES]
    return WORKFLOW.format(steps="".join(steps), results="".join(results),
                           runners=",".join(name[:4] for name in NAMES))


def notebook(name):
    """An exercise as a notebook: its text, its file to be written, its grader."""
    source = (EXERCISES / f"{name}.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source))
    title, _, rest = text.partition("\n")
    cells = [("markdown", f"# {title}\n{rest}"),
             ("code", "import os, sys\n\nif not os.path.exists('exercises'):\n    os.chdir('..')"),
             ("code", f"%%writefile exercises/{name}.py\n{source}"),
             ("code", f"!{{sys.executable}} -m pytest exercises -k {name[:4]}")]
    content = []
    for number, (kind, text) in enumerate(cells):
        code = {"outputs": [], "execution_count": None} if kind == "code" else {}
        content.append({"cell_type": kind, "id": f"cell{number}", "metadata": {},
                        "source": text.splitlines(keepends=True), **code})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps({"cells": content, "metadata": {"kernelspec": kernel}, "nbformat": 4,
                       "nbformat_minor": 5}, indent=1, ensure_ascii=False)


def write(directory):
    """The students' copy, in a directory that is empty or not there."""
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory} is not empty")
    copy(directory, GRADING + TRAINING)
    for path in FILES.glob("*"):
        name = ".gitignore" if path.name == "gitignore" else path.name
        shutil.copyfile(path, directory / name)
    readme = directory / "exercises" / "README.md"
    for_students = readme.read_text(encoding="utf-8").partition("\n## For teachers")[0]
    texts = {"exercises/README.md": for_students, ".github/workflows/classroom.yml": workflow()}
    for name in NAMES[:5]:
        texts[f"notebooks/{name}.ipynb"] = notebook(name)
    for name, text in texts.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")


def main():
    parser = command_parser(__doc__, "python -m exercises.teacher.handout")
    parser.add_argument("directory", metavar="DIR", help="an empty or new directory")
    directory = parser.parse_args().directory
    with about_input("the copy could not be written"):
        write(directory)
    print(f"cd {directory} && pip install -r requirements.txt && pytest exercises")


if __name__ == "__main__":
    run_command(main)
