"""The exercises' graders grade: solutions pass, stubs do not, wrong answers are found out."""
import importlib
import re
from pathlib import Path

import pytest

from exercises import handout

ROOT = Path(__file__).parent
EXERCISES = ROOT / "exercises"
NAMES = sorted(path.stem for path in (EXERCISES / "solutions").glob("ex*.py"))
NUMBERS = [name[:4] for name in NAMES]


class Results:
    """A plugin of a run within the run: how many tests passed, and what the others said."""

    def __init__(self):
        self.passed, self.failures = 0, []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failures.append(str(report.longrepr))
        elif report.when == "call":
            self.passed += 1


def grade(number, *options):
    """Runs the grader of one exercise -> its Results."""
    results = Results()
    path = EXERCISES / f"test_{number}.py"
    pytest.main([str(path), "-p", "no:cacheprovider", "-p", "no:terminal", *options],
                plugins=[results])
    return results


def answers(number):
    module = importlib.import_module(f"exercises.answers.{number}")
    return module.WRONG, module.RIGHT


def written(tmp_path, name, text):
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    return f"--answers={tmp_path}"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_solution_gets_all_points(number):
    results = grade(number, "--solutions")
    assert results.passed >= 3 and not results.failures


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_gets_none_and_is_the_solution_without_its_answers(name, tmp_path):
    solution = (EXERCISES / "solutions" / f"{name}.py").read_text(encoding="utf-8")
    stub = handout.stub(solution)
    assert (EXERCISES / f"{name}.py").read_text(encoding="utf-8") == stub
    results = grade(name[:4], written(tmp_path, name, stub))
    assert not results.passed and results.failures
    for failure in results.failures:
        assert re.search(rf"{name}: \w+ is not written yet", failure), failure


@pytest.mark.parametrize("number", NUMBERS)
def test_wrong_answers_are_found_out_and_another_right_one_is_not(number, tmp_path):
    [name] = [name for name in NAMES if name.startswith(number)]
    solution = (EXERCISES / "solutions" / f"{name}.py").read_text(encoding="utf-8")
    wrong, right = answers(number)
    assert len(wrong) >= 3
    for what, (said, instead) in wrong.items():
        assert solution.count(said) == 1, (what, said)
        results = grade(number, written(tmp_path, name, solution.replace(said, instead)))
        assert results.failures, f"{name}: nobody noticed that {what}"
    results = grade(number, written(tmp_path, name, right))
    assert results.passed and not results.failures, results.failures
