"""What several test files share."""
import json

import pytest
import torch

from model import GPT, GPTConfig


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The path of a checkpoint for --init_from: a GPT with one layer, 32 wide, context 32."""
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=2048, n_layer=1, n_head=2, n_embd=32))
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    torch.save({"config": vars(model.config), "model": state}, directory / "model.pt")
    # It has the vocabulary of the shipped base, as a run that began with it would say.
    (directory / "result.json").write_text(json.dumps({"settings": {"init_from": "base"}}))
    return directory / "model.pt"
