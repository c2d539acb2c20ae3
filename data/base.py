"""The shipped base model, data/base.pt, and files like it."""
from pathlib import Path

from data.files import load_file
from model import GPT, GPTConfig

PATH = Path(__file__).with_name("base.pt")


def load(dropout=0.0):
    """The shipped GPT, in float32 on the CPU."""
    return build(load_file(PATH), dropout)


def build(contents, dropout=0.0):
    """The GPT that such a file holds."""
    model = GPT(GPTConfig(**{**contents["config"], "dropout": dropout}))
    model.load_state_dict(contents["model"], strict=False)  # without lm_head, which is tied to wte
    return model


def contents(model):
    """What such a file holds of a model: its shape, and its weights in half precision."""
    weights = {name: value.half() for name, value in model.state_dict().items()
               if name != "lm_head.weight"}
    return {"config": vars(model.config), "model": weights}
