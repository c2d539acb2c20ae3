"""huggingface.py, with transformers and PEFT as the reference: without them, those tests skip."""
import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn

import huggingface
import lora
import train
from data.files import InputError, run_command
from huggingface import export_peft, load_peft, load_run, save_merged
from model import GPT, GPTConfig, read_tensors

ROOT = Path(__file__).parents[1]
IDX = torch.randint(60, (3, 20), generator=torch.Generator().manual_seed(0))
GPT2 = dict(n_positions=32, vocab_size=60, n_layer=2, n_head=2, n_embd=16)
BLOCKS = dict(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
              intermediate_size=32)
LLAMA = dict(BLOCKS, num_key_value_heads=1, head_dim=8)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def peft(transformers):
    peft = pytest.importorskip("peft")
    with pytest.MonkeyPatch.context() as patched:  # a quarter of the time, for a README.md
        patched.setattr(peft.PeftModel, "create_or_update_model_card", lambda *args: None)
        yield peft


def random(model):
    """The same random weights at every call; no bias is zero, and no norm trivial."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


def gpt2(transformers, **changes):
    torch.manual_seed(0)
    return random(transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT2, **changes})))


def llama(transformers, **changes):
    torch.manual_seed(0)
    return random(transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **changes})))


def bert(transformers):
    torch.manual_seed(0)
    return random(transformers.BertForSequenceClassification(transformers.BertConfig(**BLOCKS)))


def our_gpt():
    return random(GPT(GPTConfig(32, 60, 2, 2, 16)))


def trained(model):
    """The model as if everything that trains in it had trained."""
    torch.manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    return model.eval()


@torch.no_grad()
def logits(model):
    output = model(IDX)
    return output[0] if isinstance(output, tuple) else output.logits


def assert_same(model, other, error=1e-5):
    torch.testing.assert_close(logits(model), logits(other), rtol=0, atol=error)


def made_by_peft(peft, model, directory, **options):
    """The model with an adapter that PEFT made and saved."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 9, "init_lora_weights": False, **options})
    model = trained(peft.get_peft_model(model, config))
    model.save_pretrained(directory)
    return model


def edit_config(directory, **changes):
    path = directory / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(config))


# ---- To PEFT -------------------------------------------------------------------------------------


@pytest.mark.parametrize("start, rslora", [("lora", False), ("lora", True), ("lora_ga", True)])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_an_exported_adapter_on_the_untouched_model_gives_our_logits(
        peft, transformers, tmp_path, monkeypatch, start, rslora, safe):
    gpt2(transformers).save_pretrained(tmp_path / "base")
    base = GPT.from_pretrained(tmp_path / "base").eval()
    model = lora.apply_lora(GPT.from_pretrained(tmp_path / "base"), 3, 5.0, rslora=rslora)
    if start == "lora_ga":
        lora.lora_ga_init(model, [IDX], lambda model, idx: model(idx, idx.roll(-1, 1))[1])
    trained(model)
    with monkeypatch.context() as patched:
        if not safe:
            patched.setattr(huggingface.importlib.util, "find_spec", lambda name: None)
        export_peft(model, tmp_path / "adapter")
    suffix = "safetensors" if safe else "bin"
    assert (tmp_path / "adapter" / f"adapter_model.{suffix}").exists()

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    rank = 6 if start == "lora_ga" else 3  # LoRA-GA's adapter has rank 2r
    scale = 5 / 3**0.5 if rslora else 5 / 3
    assert (config["r"], config["lora_alpha"]) == (rank, pytest.approx(scale * rank))
    theirs = peft.PeftModel.from_pretrained(gpt2(transformers), tmp_path / "adapter").eval()
    assert_same(theirs, model, error=1e-4)
    assert (logits(model) - logits(base)).abs().max() > 0.01
    assert_same(load_peft(base, tmp_path / "adapter"), model)


class Nested(nn.Module):
    """Two layers of which one's name is the end of the other's."""

    def __init__(self):
        super().__init__()
        self.a = nn.ModuleDict({"fc": nn.Linear(6, 6)})
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(torch.tanh(self.a["fc"](x)))


@pytest.mark.parametrize("ranks", [{"a.fc": 2, "fc": 2}, {"a.fc": 3, "fc": 2}, {"fc": 2}])
def test_a_layer_whose_name_is_the_end_of_anothers_keeps_its_rank_and_scale(peft, tmp_path, ranks):
    state, x = {}, torch.randn(5, 6)
    for name, rank in ranks.items():
        state[f"{name}.lora_A"] = torch.randn(rank, 6)
        state[f"{name}.lora_B"] = torch.randn(6, rank)
        state[f"{name}.scale"] = torch.tensor(5.0 if name == "fc" else 1.0)
    plain = random(Nested())
    model = lora.load_adapter(copy.deepcopy(plain), state)
    export_peft(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path).eval()
    torch.testing.assert_close(theirs(x), model(x))
    torch.testing.assert_close(load_peft(plain, tmp_path)(x), model(x))


@pytest.mark.parametrize("build, targets, in_full", [
    (llama, ["q_proj", "down_proj"], ["model.norm"]),  # input_layernorm ends in "norm" too
    (llama, ["q_proj", "lm_head"], ["model.embed_tokens"]),
    (bert, ["query", "value"], ["classifier"]),
])
def test_what_trains_in_full_goes_to_peft_and_back(peft, transformers, tmp_path, build, targets,
                                                   in_full):
    model = lora.apply_lora(build(transformers), 3, 5.0, targets=targets)
    for name in in_full:
        model.get_submodule(name).weight.requires_grad_(True)  # not a bias: PEFT saves both
    trained(model)
    export_peft(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(build(transformers), tmp_path).eval()
    assert_same(theirs, model)
    again = load_peft(build(transformers), tmp_path)
    assert_same(again, model)
    assert {f"{name}.weight" for name in in_full} <= dict(again.named_parameters()).keys()
    assert all(again.get_submodule(name).weight.requires_grad for name in in_full)


def test_the_inner_models_norm_is_saved_with_all_that_peft_takes_for_it(
        peft, transformers, tmp_path):
    model = lora.apply_lora(llama(transformers).model, 3, targets="q_proj")
    model.norm.requires_grad_(True)
    export_peft(trained(model), tmp_path)  # modules_to_save = ["norm"]
    theirs = peft.PeftModel.from_pretrained(llama(transformers).model, tmp_path).eval()
    torch.testing.assert_close(theirs(IDX)[0], model(IDX)[0])


def test_gpt2s_conv1d_trains_in_full_and_goes_to_peft_and_back(peft, transformers, tmp_path):
    gpt2(transformers).save_pretrained(tmp_path / "base")
    model = lora.apply_lora(GPT.from_pretrained(tmp_path / "base"), 3, targets="c_fc")
    model.transformer.ln_f.requires_grad_(True)
    model.transformer.h[1].attn.c_proj.requires_grad_(True)
    export_peft(trained(model), tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(gpt2(transformers), tmp_path / "adapter").eval()
    assert_same(theirs, model, error=1e-4)
    again = load_peft(GPT.from_pretrained(tmp_path / "base").eval(), tmp_path / "adapter")
    assert_same(again, model)


def test_a_module_that_trains_in_full_with_lora_inside_is_not_exported(transformers, tmp_path):
    model = lora.apply_lora(llama(transformers), 2, targets="q_proj")
    model.model.layers[0].self_attn.q_proj.linear.requires_grad_(True)
    with pytest.raises(ValueError, match="cannot train in full with PEFT"):
        export_peft(model, tmp_path)


def test_what_peft_cannot_hold_is_not_exported(tmp_path):
    tied = lora.apply_lora(our_gpt(), 2)
    tied.lm_head.requires_grad_(True)
    direct = lora.apply_lora(Nested(), 2, targets="fc")
    direct.register_parameter("shift", nn.Parameter(torch.zeros(6)))
    around = lora.apply_lora(Nested(), 2, targets="a.fc")
    around.fc.requires_grad_(True)  # PEFT would take a.fc for it
    cases = [(our_gpt(), "needs LoRA layers"), (tied, "wte.weight and lm_head.weight are tied"),
             (direct, "the model cannot train in full"), (around, "a.fc cannot train in full")]
    for model, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            export_peft(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


# ---- From PEFT -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {}, {"use_rslora": True}, {"target_modules": ["c_fc"]},
    {"rank_pattern": {"c_attn": 2}, "alpha_pattern": {"c_attn": 5, r"h\.1\..*c_\w+": 7}},
    {"target_modules": ["lm_head"]},  # PEFT saves lm_head.base_layer.weight beside it
])
def test_pefts_adapter_for_gpt2_loads_and_goes_back(peft, transformers, tmp_path, options):
    gpt2(transformers).save_pretrained(tmp_path / "base")
    options = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True, **options}
    theirs = made_by_peft(peft, gpt2(transformers), tmp_path / "adapter", **options)
    mine = load_peft(GPT.from_pretrained(tmp_path / "base").eval(), tmp_path / "adapter")
    assert_same(mine, theirs, error=1e-4)
    export_peft(mine, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(gpt2(transformers), tmp_path / "again").eval()
    assert_same(again, theirs, error=1e-4)


# Values other than the default for every field of LoraConfig. Some need another field beside them.
# "config" stands for a new instance of the class that the field is for.
FIELDS = {
    "task_type": ["CAUSAL_LM"], "peft_type": ["IA3"], "peft_version": ["0.1"], "revision": ["x"],
    "auto_mapping": [{"base_model_class": "X", "parent_library": "y"}], "inference_mode": [True],
    "base_model_name_or_path": ["/nowhere"], "r": [3], "lora_alpha": [5], "lora_dropout": [0.5],
    "target_modules": [["q_proj"], "all-linear", r".*\.o_proj", ["v_proj", "lm_head"]],
    "exclude_modules": [["model.layers.0.self_attn.q_proj"]], "fan_in_fan_out": [True],
    "bias": ["all", "lora_only"], "use_rslora": [True],
    "modules_to_save": [["norm"], ["lm_head"], ["embed_tokens", "mlp.up_proj"]],
    "init_lora_weights": [False, "gaussian", "eva", "orthogonal", "mica", "pissa", "pissa_niter_2",
                          "olora", "lora_ga", "corda", "loftq"],
    "layers_to_transform": [1, [0]], "layers_pattern": ["layers"], "rank_pattern": [{"q_proj": 2}],
    "alpha_pattern": [{"q_proj": 2, r"layers\.1\..*": 3}], "megatron_config": [{"hidden_size": 1}],
    "megatron_core": ["other"], "trainable_token_indices": [[1, 2]], "loftq_config": [{"bits": 4}],
    "eva_config": ["EvaConfig"], "corda_config": ["CordaConfig"],
    "lora_ga_config": ["LoraGAConfig"], "velora_config": ["VeloraConfig"],
    "monteclora_config": ["MontecloraConfig"], "runtime_config": ["LoraRuntimeConfig"],
    "use_bdlora": ["BdLoraConfig"], "arrow_config": ["ArrowConfig"], "kasa_config": ["KasaConfig"],
    "use_dora": [True], "alora_invocation_tokens": [[5, 6]], "use_qalora": [True],
    "qalora_group_size": [8], "layer_replication": [[[0, 2], [1, 2]]], "lora_bias": [True],
    "target_parameters": [["mlp.gate_proj.weight"]], "ensure_weight_tying": [True],
}
# PEFT itself cannot make these here: they are written into the file of a plain adapter.
UNMADE = ("peft_type", "megatron_config", "use_bdlora", "arrow_config")


@pytest.mark.filterwarnings("ignore")
def test_every_field_of_pefts_configuration_loads_exactly_or_is_refused(
        peft, transformers, tmp_path):
    import peft.tuners.lora.config as configs
    assert FIELDS.keys() == {field.name for field in dataclasses.fields(peft.LoraConfig)}
    loaded, refused = set(), set()
    for field, values in FIELDS.items():
        for number, value in enumerate(values):
            directory = tmp_path / field / str(number)
            options = {"target_modules": ["q_proj", "down_proj"]}
            made = field not in UNMADE and value not in ("corda", "loftq")
            if str(value).endswith("Config"):
                value = getattr(configs, value)()
            if field == "layers_pattern":
                options["layers_to_transform"] = [1]
            if made:
                options[field] = value
            theirs = made_by_peft(peft, llama(transformers), directory, **options)
            if not made:
                is_config = dataclasses.is_dataclass(value)
                edit_config(directory, **{field: dataclasses.asdict(value) if is_config else value})
            try:
                mine = load_peft(llama(transformers), directory)
            except InputError as error:
                assert field in str(error) and "\n" not in str(error)
                refused.add(field)
            else:
                reloaded = peft.PeftModel.from_pretrained(llama(transformers), directory).eval()
                assert_same(mine, reloaded)
                if field != "alpha_pattern":  # PEFT sorts its entries as it saves them
                    assert_same(mine, theirs)
                loaded.add(field)
    understood = {*huggingface.READ, *huggingface.SEEN_IN_TENSORS, *huggingface.WITHOUT_EFFECT}
    assert loaded == understood - {"peft_type"} | {"runtime_config"}  # which PEFT does not save
    assert refused == FIELDS.keys() - loaded | {"init_lora_weights"}


def test_a_field_of_a_later_peft_is_refused_unless_it_is_unset(tmp_path):
    export_peft(lora.apply_lora(our_gpt(), 2), tmp_path)
    edit_config(tmp_path, new_list=[], new_switch=False, new_part=None, new_table={})
    load_peft(our_gpt(), tmp_path)
    edit_config(tmp_path, new_switch=True)
    with pytest.raises(InputError, match="new_switch is True, which is not of plain LoRA"):
        load_peft(our_gpt(), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_layer_in_pefts_file_has_to_be_the_models_own(peft, transformers, tmp_path, dtype):
    made_by_peft(peft, llama(transformers).to(dtype), tmp_path, target_modules=["lm_head"])
    load_peft(llama(transformers), tmp_path)  # the same, or the same rounded
    other = llama(transformers)
    other.lm_head.weight.data *= 1.1
    with pytest.raises(InputError, match="lm_head.base_layer.weight, .* another base model"):
        load_peft(other, tmp_path)


def test_a_tied_head_that_peft_trained_as_a_copy_is_refused(peft, transformers, tmp_path):
    options = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    tied = llama(transformers, tie_word_embeddings=True)
    made_by_peft(peft, tied, tmp_path, **options)
    with pytest.raises(InputError, match="embed_tokens.weight and lm_head.weight are tied"):
        load_peft(llama(transformers, tie_word_embeddings=True), tmp_path)
    load_peft(llama(transformers), tmp_path)


def test_a_folder_without_an_adapter_or_with_an_unknown_tensor_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="adapter_config.json is missing or damaged"):
        load_peft(our_gpt(), tmp_path)
    export_peft(lora.apply_lora(our_gpt(), 2), tmp_path)
    torch.save({"base_model.model.transformer.h.0.x.lora_C": torch.ones(1)},
               tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink(missing_ok=True)
    with pytest.raises(InputError, match="holds transformer.h.0.x.lora_C, which is not of"):
        load_peft(our_gpt(), tmp_path)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(InputError, match="adapter_model.bin"):
        load_peft(our_gpt(), tmp_path)


# ---- Merged models -------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["c_attn", "lm_head"])
def test_a_merged_checkpoint_is_a_plain_hugging_face_model(transformers, tmp_path, targets):
    model = trained(lora.apply_lora(our_gpt(), 3, targets=targets))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_merged(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_same(loaded, model, error=1e-4)
    assert loaded.config.tie_word_embeddings == (targets != "lm_head")  # an adapted one is not tied
    names = read_tensors(tmp_path / "model.safetensors").keys()
    assert not any("lora" in name or "linear" in name for name in names)


def test_a_merged_checkpoint_has_the_models_shape(tmp_path):
    save_merged(our_gpt(), tmp_path)
    assert GPT.from_pretrained(tmp_path).config == our_gpt().config


# ---- Finished runs -------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process -> exit code, what it printed, its errors."""
    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["huggingface.py", *map(str, arguments)])
        code = 0
        try:
            run_command(huggingface.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return command


@pytest.mark.parametrize("method", ["lora", "loraga", "full"])
def test_runs_are_exported_and_merged(peft, transformers, command, tiny_base, tmp_path, method):
    out_dir, pairs = tmp_path / "run", tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n} plus {n} is", "completion": f" {n + n}"} for n in range(8)]
    pairs.write_text("\n".join(json.dumps(row) for row in rows))
    flags = f"--method {method} --steps 2 --warmup 0 --lr 0.1 --batch_size 4 --block_size 32"
    files = ["--data", pairs, "--val_data", pairs, "--init_from", tiny_base, "--out_dir", out_dir]
    train.train(train.parse_args([*flags.split(), "--device", "cpu", *map(str, files)]))
    model, settings = load_run(out_dir)
    base = GPT.from_pretrained(tiny_base).eval()
    assert settings["method"] == method
    assert (logits(model.eval()) - logits(base)).abs().max() > 0.01

    code, printed, _ = command("merged", out_dir)
    assert code == 0 and printed.endswith(f"wrote {out_dir / 'merged'}\n")
    merged = transformers.AutoModelForCausalLM.from_pretrained(out_dir / "merged").eval()
    assert_same(merged, model, error=1e-4)
    code, _, error = command("peft", out_dir)
    if method == "full":
        assert code == 2 and "needs LoRA layers" in error
        return
    save_merged(base, tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert_same(peft.PeftModel.from_pretrained(theirs, out_dir / "peft").eval(), model, error=1e-4)


@pytest.mark.parametrize("arguments", [["peft", "nowhere"], ["onnx", "nowhere"], ["merged"]])
def test_bad_input_is_one_sentence_and_exit_code_2(command, arguments):
    code, _, error = command(*arguments)
    assert (code, error.count("\n")) == (2, 1)


def test_the_command_itself():
    command = [sys.executable, "huggingface.py", "peft", "nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2
    assert result.stderr == "huggingface.py: nowhere/result.json is missing or damaged\n"
