"""The README's program runs as printed, and what it names is there."""
import inspect
import re
import textwrap
from pathlib import Path

import torch

import lora

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_forward_pass_stands_there_as_in_lora_py():
    forward = textwrap.dedent(inspect.getsource(lora.LoRALinear.forward))
    assert forward in BLOCKS


def test_the_program_runs_as_printed(tmp_path, monkeypatch):
    [program] = [block for block in BLOCKS if "nn.Sequential(" in block]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    exec(program, names)
    state = torch.load("adapter.pt", weights_only=True)
    assert state["0.lora_B"].any()
    assert not lora.lora_layers(names["model"])
    assert names["model"](torch.randn(5, 64)).isfinite().all()


def test_links_name_functions_that_are_there():
    links = re.findall(r"\[`(\w+)`\]\((\w+\.py)\)", README)
    assert len(links) >= 5
    for name, file in links:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{file} has no {name}"
