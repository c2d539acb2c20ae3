"""The model that a run starts from: the shipped one, data/base.pt, or GPT-2's weights."""
from pathlib import Path

import huggingface
from data.files import load_file
from model import GPT, GPTConfig

PATH = Path(__file__).with_name("base.pt")


def load(init_from=None):
    """The shipped GPT; or GPT-2, where init_from is what `huggingface.load_gpt2` takes."""
    if init_from:
        return huggingface.load_gpt2(init_from)
    return build(load_file(PATH))


def build(contents):
    """The GPT that such a file holds."""
    model = GPT(GPTConfig(**contents["config"]))
    model.load_state_dict(contents["model"], strict=False)  # without lm_head, which is tied to wte
    return model


def contents(model):
    """What such a file holds of a model: its shape, and its weights in half precision."""
    weights = {name: value.half() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    return {"config": vars(model.config), "model": weights}
