"""Records what a GPU does here: the tests, each method beside the CPU, the benchmark.

    python -m experiments.gpu           writes out/gpu/record.md, anew after each part
"""
import subprocess
import sys

import torch

import train
from data.files import load_file, replace_file


def command(words):
    """Runs a command of this Python -> the command and what it printed."""
    output = subprocess.run([sys.executable, *words.split()], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    return f"\n    python {words}\n\n{output}\n"


def losses(method, device):
    """The losses of 25 steps in float32."""
    out_dir = f"out/gpu/{method}-{device}"
    flags = f"--method {method} --device {device} --dtype float32 --steps 25 --out_dir {out_dir}"
    train.train(train.parse_args([*flags.split(), "--overwrite"]))
    return [row["loss"] for row in load_file(f"{out_dir}/ckpt.pt")["progress"]["log"][1:]]


def parts():
    yield f"# {torch.cuda.get_device_name()}, torch {torch.__version__}\n"
    yield command("-m pytest -q")
    yield "\n| method | largest difference from the CPU in 5 losses | in 25 |\n|---|---|---|\n"
    for method in ("full", "lora", "loraplus", "loraga", "riemannian"):
        apart = [abs(a - b) for a, b in zip(losses(method, "cuda"), losses(method, "cpu"))]
        yield f"| {method} | {max(apart[:5]):.1e} | {max(apart):.1e} |\n"
    yield command("-m experiments.bench steps memory preconditioner --device cuda "
                  "--dtypes mixed bfloat16 --shapes gpt2 gpt2-xl")


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("experiments.gpu needs a GPU that torch.cuda finds; there is none")
    record = ""
    for part in parts():
        print(part, end="", flush=True)
        record += part
        with replace_file("out/gpu/record.md") as file:
            file.write(record.encode())
