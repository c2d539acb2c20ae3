"""The programs in README.md run as printed."""
import re
from pathlib import Path

import lora

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_program_for_your_own_project_runs_and_saves_an_adapter(tmp_path, monkeypatch):
    [program] = [text for text in PROGRAMS if "nn.Sequential" in text]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(program, names)
    assert not lora.lora_layers(names["model"])
    assert (tmp_path / "adapter.pt").exists()


def test_the_forward_pass_on_the_page_is_that_of_lora_py():
    [forward] = [text for text in PROGRAMS if "def forward" in text]
    source = Path(lora.__file__).read_text(encoding="utf-8")
    indented = "".join(f"    {line}\n" for line in forward.splitlines())
    assert indented in source


def test_every_file_and_function_that_the_page_links_exists():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target
    for name, file in re.findall(r"\[`(\w+)`\]\((\w+\.py)\)", README):
        source = (root / file).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), name
