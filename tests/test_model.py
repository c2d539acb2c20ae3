"""model.py: the GPT, what it generates, and the checkpoints that it reads."""
import json

import pytest
import torch

from model import GPT, GPTConfig, eval_mode, read_tensors, to_hugging_face

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SHAPE = {"vocab_size": 40, "n_layer": 2, "n_head": 2, "n_embd": 16}


def gpt(dropout=0.0):
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=16, dropout=dropout, **SHAPE)).double()


def tokens():
    """idx and targets, (4, 12) each."""
    return torch.randint(40, (2, 4, 12), generator=torch.Generator().manual_seed(1))


# ---- The forward pass ------------------------------------------------------------------------------


def test_parameters_have_the_names_of_hugging_faces_gpt2_and_embeddings_are_tied():
    model = gpt()
    layers = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    names = {f"transformer.h.{i}.{layer}" for i in range(2) for layer in layers}
    names = {f"{name}.{part}" for name in names | {"transformer.ln_f"} for part in ("weight", "bias")}
    names |= {"transformer.wte.weight", "transformer.wpe.weight"}
    assert {name for name, _ in model.named_parameters()} == names
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_position_does_not_see_later_ones():
    model = gpt()
    idx, _ = tokens()
    torch.testing.assert_close(model(idx[:, :5])[0], model(idx)[0][:, :5], **EXACT)


@pytest.mark.parametrize("given", [12, 7, 5])
def test_the_loss_is_the_mean_cross_entropy_of_the_targets_that_are_not_minus_1(given):
    model = gpt()
    idx, targets = tokens()
    logits, none = model(idx)
    assert none is None
    # The last five positions count, and the last `given` positions are computed.
    losses = -torch.log_softmax(logits, -1).gather(2, targets[:, :, None])[:, :, 0]
    targets[:, :7] = -1
    looked_at, loss = model(idx, targets[:, -given:])
    torch.testing.assert_close(loss, losses[:, 7:].mean(), **EXACT)
    torch.testing.assert_close(looked_at, logits[:, -given:], **EXACT)


def test_what_does_not_fit_is_one_sentence():
    with pytest.raises(ValueError, match="17 tokens.*block_size allows 16"):
        gpt()(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="n_embd 16 must be a multiple of n_head 3"):
        GPTConfig(n_embd=16, n_head=3)


def test_it_compiles_without_a_graph_break():
    model = gpt()
    idx, targets = tokens()
    targets = targets[:, 7:].masked_fill(targets[:, 7:] < 5, -1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(idx, targets)[1], model(idx, targets)[1], **EXACT)


# ---- Generation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1e-40}, {"top_k": 1}])
def test_generate_is_greedy_at_temperature_0_and_with_one_candidate(options):
    model = gpt(dropout=0.5)
    idx, _ = tokens()
    out = model.generate(idx, 6, **options)
    assert out.shape == (4, 18)
    assert torch.equal(out[:, :12], idx)
    model.eval()
    for T in range(12, 18):
        # At most block_size = 16 tokens fit into the model.
        logits = model(out[:, max(0, T - 16):T])[0][:, -1]
        assert torch.equal(out[:, T], logits.argmax(-1))


def test_generate_samples_by_its_seed_from_the_likeliest_tokens():
    model = gpt()
    idx, _ = tokens()
    state = torch.get_rng_state()
    first = model.generate(idx, 9, temperature=5.0, seed=1)
    assert torch.equal(first, model.generate(idx, 9, temperature=5.0, seed=1))
    assert not torch.equal(first, model.generate(idx, 9, temperature=5.0, seed=2))
    assert torch.equal(torch.get_rng_state(), state)

    likeliest = model(idx)[0][:, -1].topk(3).indices
    sampled = [model.generate(idx, 1, 50.0, top_k=3, seed=seed)[:, -1:] for seed in range(30)]
    for row in range(4):
        tokens_of_row = {sample[row].item() for sample in sampled}
        assert tokens_of_row == set(likeliest[row].tolist())


def test_eval_mode_gives_each_submodule_its_own_mode_back():
    model = gpt(dropout=0.5)
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        with eval_mode(model):
            assert not any(module.training for module in model.modules())
            raise KeyboardInterrupt
    assert [module.training for module in model.modules()] == modes
    model.generate(tokens()[0], 1)
    assert [module.training for module in model.modules()] == modes


# ---- Checkpoints -----------------------------------------------------------------------------------


def write_gpt2(directory, model, **config):
    """A checkpoint as OpenAI's: bare names, and the masks among the weights."""
    state = {}
    for name, value in model.state_dict().items():
        if name != "lm_head.weight":
            state[name.removeprefix("transformer.")] = to_hugging_face(name, value)
    state["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    torch.save(state, directory / "pytorch_model.bin")
    config = {"model_type": "gpt2", "n_positions": 16, **SHAPE, **config}
    (directory / "config.json").write_text(json.dumps(config))


def write_ours(path, model, **config):
    """A model.pt, as train.py writes it."""
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    torch.save({"config": {**vars(model.config), **config}, "model": state}, path)


def test_the_shipped_model_and_both_kinds_of_checkpoints_load(tmp_path):
    base = GPT.from_pretrained(dropout=0.25)
    assert base.config == GPTConfig(128, 2048, n_layer=4, n_head=4, n_embd=256, dropout=0.25)
    model = gpt().float()
    write_gpt2(tmp_path, model)
    write_ours(tmp_path / "model.pt", model)
    for path in (tmp_path, tmp_path / "pytorch_model.bin", str(tmp_path / "model.pt")):
        loaded = GPT.from_pretrained(path)
        assert loaded.config == model.config
        assert torch.equal(loaded(tokens()[0])[0], model(tokens()[0])[0])
        assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_hugging_faces_conv1d_weights_are_transposed_and_nothing_else():
    changed = set()
    for name, value in gpt().state_dict().items():
        theirs = to_hugging_face(name, value)
        assert torch.equal(to_hugging_face(name, theirs), value)
        if theirs is not value:
            assert torch.equal(theirs, value.T)
            changed.add(name.rpartition("h.")[2][2:])
    assert changed == {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight",
                       "mlp.c_proj.weight"}


@pytest.mark.parametrize("config, sentence", [
    ({"model_type": "bert"}, "model_type is 'bert', allowed is 'gpt2'"),
    ({"activation_function": "relu"}, "activation_function is 'relu'"),
    ({"n_embd": 32}, "is not of its config's size"),
    ({"n_layer": 3}, "is not a whole GPT-2: .*transformer.h.2"),
    ({"n_layer": 1}, "is not a whole GPT-2: .*transformer.h.1")])
def test_another_model_is_refused(tmp_path, config, sentence):
    write_gpt2(tmp_path, gpt(), **config)
    with pytest.raises(ValueError, match=sentence):
        GPT.from_pretrained(tmp_path)


def test_a_missing_or_damaged_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="gpt3 is not a checkpoint.* one of base, gpt2"):
        GPT.from_pretrained("gpt3")
    path = tmp_path / "model.pt"
    write_ours(path, gpt())
    # torch.load raises OSError for some files that were cut off.
    for damaged in (b"", b"not a checkpoint", path.read_bytes()[:-1000]):
        path.write_bytes(damaged)
        with pytest.raises((ValueError, OSError)):
            read_tensors(path)


def test_a_download_that_fails_says_where_to_put_the_file(tmp_path, monkeypatch):
    def fail(url, path):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(OSError, match="no network.*put the file into .*gpt2-medium"):
        GPT.from_pretrained("gpt2-medium")
