"""model.py: the forward pass, weights from files of GPT-2 and of train.py, and generate."""
import json
from pathlib import Path

import pytest
import torch

from model import GPT, GPTConfig, eval_mode, to_hugging_face

TINY = dict(n_positions=32, vocab_size=60, n_layer=2, n_head=2, n_embd=16)
IDX = torch.randint(60, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def gpt2(transformers, **changes):
    """Hugging Face's model with random weights; no bias is zero, and no norm trivial."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**TINY, **changes}))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


# ---- The forward pass ----------------------------------------------------------------------------


EXACT = {"rtol": 1e-10, "atol": 1e-10}
TARGETS = torch.randint(60, (3, 20), generator=torch.Generator().manual_seed(1))


def tiny_gpt():
    torch.manual_seed(0)
    return GPT(GPTConfig(32, 60, n_layer=2, n_head=2, n_embd=16)).double()


def test_parameters_have_the_names_of_hugging_faces_gpt2_and_embeddings_are_tied():
    model = tiny_gpt()
    layers = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    owners = [f"transformer.h.{i}.{layer}" for i in range(2) for layer in layers]
    names = {"transformer.wte.weight", "transformer.wpe.weight"}
    for owner in [*owners, "transformer.ln_f"]:
        names |= {f"{owner}.weight", f"{owner}.bias"}
    assert {name for name, _ in model.named_parameters()} == names
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_position_does_not_see_later_ones():
    model = tiny_gpt()
    torch.testing.assert_close(model(IDX[:, :5])[0], model(IDX)[0][:, :5], **EXACT)


@pytest.mark.parametrize("given", [20, 12, 5])
def test_the_loss_is_the_mean_cross_entropy_of_the_targets_that_are_not_minus_1(given):
    model = tiny_gpt()
    logits, none = model(IDX)
    assert none is None
    # The last five positions count, and the last `given` positions are computed.
    losses = -torch.log_softmax(logits, -1).gather(2, TARGETS[:, :, None])[:, :, 0]
    targets = TARGETS.clone()
    targets[:, :15] = -1
    computed, loss = model(IDX, targets[:, -given:])
    torch.testing.assert_close(loss, losses[:, 15:].mean(), **EXACT)
    torch.testing.assert_close(computed, logits[:, -given:], **EXACT)


def test_a_shape_that_does_not_fit_is_one_sentence():
    with pytest.raises(ValueError, match="33 tokens.*block_size allows 32"):
        tiny_gpt()(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match="n_embd 16 must be a multiple of n_head 3"):
        GPTConfig(n_embd=16, n_head=3)


def test_it_compiles_without_a_graph_break():
    model = tiny_gpt()
    targets = TARGETS.masked_fill(TARGETS < 5, -1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(IDX, targets)[1], model(IDX, targets)[1], **EXACT)


# ---- GPT.from_pretrained -------------------------------------------------------------------------


def test_gpt2_loads_from_both_formats_with_hugging_faces_logits(transformers, tmp_path):
    theirs = gpt2(transformers)
    theirs.save_pretrained(tmp_path)
    # pytorch_model.bin as OpenAI's on the hub: no "transformer." in its names, but masks.
    state = {"h.0.attn.bias": torch.ones(1, 1, 32, 32).tril()}
    for name, value in theirs.state_dict().items():
        if name != "lm_head.weight":
            state[name.removeprefix("transformer.")] = value
    torch.save(state, tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin"):
        model = GPT.from_pretrained(path, dropout=0.3).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(IDX)[0], theirs(IDX).logits, rtol=0, atol=1e-4)
        assert model.config == GPTConfig(32, 60, 2, 2, 16, dropout=0.3)
        assert model.lm_head.weight is model.transformer.wte.weight


def test_half_precision_is_loaded_in_float32(transformers, tmp_path):
    gpt2(transformers).half().save_pretrained(tmp_path)
    for name_or_path in ("base", tmp_path):
        dtypes = {p.dtype for p in GPT.from_pretrained(name_or_path).parameters()}
        assert dtypes == {torch.float32}


def test_to_hugging_face_is_its_own_inverse():
    x = torch.randn(4, 6)
    for name, expected in [("h.0.attn.c_attn.weight", x.T), ("wte.weight", x)]:
        assert torch.equal(to_hugging_face(name, x), expected)
        assert torch.equal(to_hugging_face(name, to_hugging_face(name, x)), x)


@pytest.mark.parametrize("config, sentence", [
    ({"model_type": "llama"}, "model_type is 'llama', allowed is 'gpt2'"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
    ({"activation_function": "relu"}, "activation_function"),
    ({"scale_attn_weights": False}, "scale_attn_weights"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings"),
    ({"n_layer": 3}, "transformer.h.2"),
    ({"n_layer": 1}, "transformer.h.1"),
    ({"n_embd": 32}, "is not of its config's size"),
    ({"n_head": 3}, "n_head 3"),
])
def test_a_checkpoint_of_another_model_is_one_sentence(transformers, tmp_path, config, sentence):
    gpt2(transformers).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(ValueError, match=sentence) as error:
        GPT.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", ["", "[]", "{}", "{", None])
def test_a_checkpoint_without_a_whole_config_is_one_sentence(tmp_path, config):
    torch.save({"wte.weight": torch.zeros(4, 4)}, tmp_path / "pytorch_model.bin")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="config.json.*(missing|damaged|has no n_positions)"):
        GPT.from_pretrained(tmp_path)


def test_an_output_layer_that_is_not_tied_is_refused(transformers, tmp_path):
    model = gpt2(transformers)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="output layer that is not tied"):
        GPT.from_pretrained(tmp_path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 99\n"


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize("contents", [b"", LFS, b"<!DOCTYPE html>", "cut"])
def test_a_damaged_file_is_one_sentence(tmp_path, file, contents):
    path, tensors = tmp_path / file, {"weight": torch.zeros(5000)}
    if file == "model.safetensors":
        pytest.importorskip("safetensors.torch").save_file(tensors, path)
    else:
        torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-100] if contents == "cut" else contents)
    with pytest.raises(ValueError, match=f"{file} is (missing, )?damaged") as error:
        GPT.from_pretrained(path)
    assert "\n" not in str(error.value)


def test_the_shipped_model_and_a_runs_model_load_with_dropout_and_tied_embeddings(tmp_path):
    base = GPT.from_pretrained(dropout=0.25)
    assert base.config == GPTConfig(128, 2048, n_layer=4, n_head=4, n_embd=256, dropout=0.25)
    model = tiny_gpt().float()
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    torch.save({"config": vars(model.config), "model": state}, tmp_path / "model.pt")
    loaded = GPT.from_pretrained(str(tmp_path / "model.pt"))
    assert loaded.config == model.config
    assert torch.equal(loaded(IDX)[0], model(IDX)[0])
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_no_checkpoint_is_one_sentence(tmp_path):
    for path in (tmp_path, tmp_path / "none.bin", "gpt3"):
        with pytest.raises(ValueError, match="is not a checkpoint.* gpt2-xl"):
            GPT.from_pretrained(path)


def test_gpt2_is_downloaded_once_and_a_failure_names_the_file_and_its_place(
        transformers, tmp_path, monkeypatch):
    gpt2(transformers).save_pretrained(tmp_path / "theirs")
    state = gpt2(transformers).state_dict()
    torch.save(state, tmp_path / "theirs" / "pytorch_model.bin")
    urls = []

    def download(url, path):
        urls.append(url)
        Path(path).write_bytes((tmp_path / "theirs" / Path(path).name).read_bytes())

    def fail(url, path):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(OSError, match=f"gpt2/resolve/main/config.json.*no network.*{tmp_path}"):
        GPT.from_pretrained("gpt2")
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert GPT.from_pretrained("gpt2").config.n_embd == 16
    assert [url.rpartition("/")[2] for url in urls] == ["config.json", "pytorch_model.bin"]


# ---- generate ------------------------------------------------------------------------------------


def test_generate_goes_on_past_the_block_size_from_the_last_tokens():
    model, seen = GPT(GPTConfig(8, 60, 1, 2, 16)), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tokens = model.generate(IDX[:, :5], 10)
    for T, context in enumerate(seen, start=5):
        assert torch.equal(context, tokens[:, max(0, T - 8):T])


@pytest.mark.parametrize("top_k, temperature", [(3, 1.0), (None, 0.1), (None, 3.0)])
def test_generate_samples_as_softmax_of_logits_over_temperature(top_k, temperature):
    model = GPT(GPTConfig(8, 6, 1, 2, 16)).eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.transformer.wte.weight, std=0.3)
    idx = torch.zeros(20000, 1, dtype=torch.long)
    logits = model(idx[:1])[0][0, -1]
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    found = model.generate(idx, 1, temperature, top_k)[:, 1].bincount(minlength=6) / 20000
    torch.testing.assert_close(found, torch.softmax(logits / temperature, -1), rtol=0, atol=0.015)


def test_temperature_0_is_greedy_and_the_global_random_state_stays():
    model = GPT(GPTConfig(8, 60, 1, 2, 16)).eval()
    state = torch.get_rng_state()
    tokens = model.generate(IDX[:, :5], 1, temperature=0)
    assert torch.equal(tokens[:, -1], model(IDX[:, :5])[0][:, -1].argmax(dim=-1))
    assert not torch.equal(model.generate(IDX, 5, seed=1), model.generate(IDX, 5, seed=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_each_module_gets_its_own_mode_back():
    model = GPT(GPTConfig(8, 60, 2, 2, 16)).train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
