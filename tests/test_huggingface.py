"""huggingface.py against the real transformers and peft (else skipped), sample.py and export.py."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import export
import huggingface
import lora
import runs
import sample
import train
from data import base, tokenizer
from data.files import InputError, load_file, save
from huggingface import export_peft, load_gpt2, load_peft, merge_and_save
from model import GPT, GPTConfig

ROOT = Path(__file__).parent
TINY = dict(n_positions=32, vocab_size=60, n_layer=2, n_head=2, n_embd=16)
# The smallest of GPT-2's four:
SMALLEST = dict(n_positions=1024, vocab_size=50257, n_layer=12, n_head=12, n_embd=768)
IDX = torch.randint(60, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers",
                               reason="needs transformers: pip install transformers")


@pytest.fixture(scope="module")
def peft(transformers):
    return pytest.importorskip("peft", reason="needs peft: pip install peft")


def gpt2(transformers, **changes):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**TINY, **changes}))
    for name, p in model.named_parameters():
        if p.dim() == 1:  # no bias is to be zero, no norm trivial
            torch.nn.init.normal_(p, mean=1.0 * name.endswith("weight"), std=0.1)
    return model.eval()


def save_as_hf_once_did(model, directory):
    """pytorch_model.bin as on the hub: without newer files' "transformer." but with masks."""
    state = {name.removeprefix("transformer."): value
             for name, value in model.state_dict().items() if "lm_head" not in name}
    state["h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    torch.save(state, directory / "pytorch_model.bin")


@pytest.mark.parametrize("shape", [TINY, SMALLEST], ids=["tiny", "124M"])
def test_gpt2_loads_from_both_formats_by_path_and_by_url_with_hfs_logits(
        transformers, shape, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    theirs = gpt2(transformers, **shape)
    theirs.save_pretrained(tmp_path)
    save_as_hf_once_did(theirs, tmp_path)
    with torch.no_grad():
        expected = theirs(IDX).logits
    for file in ("model.safetensors", "pytorch_model.bin"):
        url = (tmp_path / file).as_uri()
        for address in (tmp_path / file, url, url + "?download=true", tmp_path):
            model = load_gpt2(address).eval()
            torch.testing.assert_close(model(IDX)[0], expected, rtol=0, atol=1e-4)
            assert model.config.n_head == shape["n_head"]
            assert model.lm_head.weight is model.transformer.wte.weight


def test_two_addresses_that_differ_in_punctuation_do_not_share_their_weights(
        transformers, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface.torch.hub, "download_url_to_file",
                        lambda url, path: Path(path).write_text(url))
    urls = {"https://example.org/a-b/model.bin", "https://example.org/a.b/model.bin"}
    places = {huggingface._fetch(url) for url in urls}
    assert {place.read_text() for place in places} == urls


def test_files_that_are_no_gpt2_are_one_sentence(transformers, tmp_path):
    def variant(name, contents=None, **config):
        directory = tmp_path / name
        directory.mkdir()
        theirs.save_pretrained(directory)
        weights = directory / "model.safetensors"
        weights.write_bytes(contents or weights.read_bytes())
        settings = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**settings, **config}))
        return weights

    theirs = gpt2(transformers)
    good = variant("good").read_bytes()
    (tmp_path / "other").mkdir()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other" / "pytorch_model.bin")
    damaged = "damaged or not a checkpoint"
    no_gpt2 = "config.json does not describe a GPT-2"
    cases = [(variant("cut", good[:-100]), damaged),
             (variant("junk", b"junk" * 99), damaged),
             (variant("deeper", n_layer=3),
              "transformer.h.2.attn.c_attn.bias is missing, expected .48"),
             (variant("wider", n_embd=32), r"is \[48\], expected \[96\]"),
             (variant("llama", model_type="llama"), no_gpt2),
             (variant("epsilon", layer_norm_epsilon=1e-6), no_gpt2),
             (variant("relu", activation_function="relu"), no_gpt2),
             (variant("dropless", n_head=3), no_gpt2),
             (tmp_path / "other" / "pytorch_model.bin", "config.json is missing or damaged"),
             (tmp_path / "good" / "pytorch_model.bin",
              "neither gpt2, .* nor a checkpoint's file or")]
    for path, sentence in cases:
        with pytest.raises(ValueError, match=sentence) as error:
            load_gpt2(path)
        assert "\n" not in str(error.value)


def test_without_a_network_the_sentence_names_the_file_and_its_place(tmp_path, monkeypatch):
    def fail(url, *args, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    advice = "https://huggingface.co/openai-community/gpt2/resolve/main/.* by hand"
    with pytest.raises(OSError, match=advice) as error:
        load_gpt2("gpt2")
    place = Path(str(error.value).rpartition(" ")[2])
    assert place.is_relative_to(tmp_path)
    for file in ("config.json", "pytorch_model.bin"):  # once the files are there, they are used
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(b"{")
    with pytest.raises(ValueError, match="config.json is missing or damaged"):
        load_gpt2("gpt2")


def adapted(model, method, rslora=False, alpha=5.0, rank=3):
    """The model with an adapter that is not zero, made by LoRA or by LoRA-GA."""
    torch.manual_seed(1)
    lora.apply_lora(model, rank, alpha, rslora=rslora)
    if method == "loraga":
        lora.lora_ga_init(model, [IDX], lambda model, idx: model(idx, idx.roll(-1, 1))[1])
    for layer in lora.lora_layers(model).values():
        layer.lora_A.data += 0.1 * torch.randn_like(layer.lora_A)
        layer.lora_B.data += 0.1 * torch.randn_like(layer.lora_B)
    return model.eval()


@pytest.mark.parametrize("method, rslora", [("lora", False), ("lora", True), ("loraga", True)])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_an_exported_adapter_on_the_untouched_hf_model_gives_our_logits(
        peft, transformers, tmp_path, monkeypatch, method, rslora, safe):
    theirs, weights = gpt2(transformers), tmp_path / "base" / "model.safetensors"
    theirs.save_pretrained(tmp_path / "base")
    model = adapted(load_gpt2(weights), method, rslora)
    if not safe:
        monkeypatch.setattr(huggingface.importlib.util, "find_spec", lambda name: None)
    export_peft(model, tmp_path / "adapter")
    monkeypatch.undo()
    file = "adapter_model.safetensors" if safe else "adapter_model.bin"
    assert (tmp_path / "adapter" / file).exists()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert not config["use_rslora"]
    assert set(config["target_modules"]) == lora.lora_layers(model).keys()
    rank = 6 if method == "loraga" else 3  # LoRA-GA's has rank 2r
    scale = 5 / 3 ** 0.5 if rslora else 5 / 3
    assert (config["r"], config["lora_alpha"]) == (rank, pytest.approx(scale * rank))
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(IDX).logits, model(IDX)[0], rtol=0, atol=1e-4)
    assert (loaded(IDX).logits - load_gpt2(weights)(IDX)[0]).abs().max() > 0.01
    again = load_peft(load_gpt2(weights), tmp_path / "adapter")
    for name, layer in lora.lora_layers(again).items():
        assert abs(layer.scale - lora.lora_layers(model)[name].scale) < 1e-14
    torch.testing.assert_close(again(IDX)[0], model(IDX)[0], rtol=0, atol=1e-5)


def test_what_also_trains_goes_to_peft_and_back(peft, transformers, tmp_path):
    """As modules_to_save: a norm, and a Conv1D, whose weight HF keeps transposed."""
    theirs = gpt2(transformers)
    theirs.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    model = load_gpt2(tmp_path / "base")
    lora.apply_lora(model, 3, 5.0, targets=["c_fc"], also_train=["ln_f", "h.1.attn.c_proj"])
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    export_peft(model.eval(), tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(IDX).logits, model(IDX)[0], rtol=0, atol=1e-4)
    again = load_peft(load_gpt2(tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(IDX)[0], model(IDX)[0], rtol=0, atol=1e-5)
    trained, again_trained = ({name for name, p in m.named_parameters() if p.requires_grad}
                              for m in (model, again))
    assert trained == again_trained


def test_a_classifier_head_that_peft_has_trained_loads_into_any_model(peft, transformers, tmp_path):
    config = transformers.BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=32)
    torch.manual_seed(0)
    base_model = transformers.BertForSequenceClassification(config).eval()
    plain = {name: value.clone() for name, value in base_model.state_dict().items()}
    options = dict(r=4, target_modules=["query", "value"], init_lora_weights=False,
                   modules_to_save=["classifier"])
    theirs = peft.get_peft_model(base_model, peft.LoraConfig(**options))
    theirs.base_model.model.classifier.modules_to_save.default.weight.data += 1
    theirs.eval().save_pretrained(tmp_path / "theirs")
    mine = transformers.BertForSequenceClassification(config).eval()
    mine.load_state_dict(plain)
    load_peft(mine, tmp_path / "theirs")
    torch.testing.assert_close(mine(IDX).logits, theirs(IDX).logits, rtol=0, atol=1e-5)
    export_peft(mine, tmp_path / "mine")
    fresh = transformers.BertForSequenceClassification(config)
    fresh.load_state_dict(plain)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "mine").eval()
    torch.testing.assert_close(loaded(IDX).logits, theirs(IDX).logits, rtol=0, atol=1e-5)


def test_what_peft_cannot_hold_is_not_exported(tmp_path):
    tied = lora.apply_lora(GPT(GPTConfig(32, 60, 1, 2, 16)), 2, also_train=["lm_head"])
    plain = GPT(GPTConfig(32, 60, 1, 2, 16))
    cases = [(tied, "transformer.wte.weight and lm_head.weight cannot be exported"),
             (plain, "needs LoRA layers")]
    for model, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            export_peft(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("options", [
    {}, {"use_rslora": True}, {"target_modules": ["c_fc"]},
    {"rank_pattern": {"c_attn": 2}, "alpha_pattern": {"h.1.attn.c_attn": 7}},
])
def test_an_adapter_that_peft_made_loads_with_its_logits(peft, transformers, tmp_path, options):
    theirs = gpt2(transformers)
    theirs.save_pretrained(tmp_path / "base")
    options = {"target_modules": ["c_attn", "c_proj", "c_fc"], **options}
    config = peft.LoraConfig(r=4, lora_alpha=9, init_lora_weights=False, fan_in_fan_out=True,
                             **options)
    model = peft.get_peft_model(theirs, config)
    model.eval().save_pretrained(tmp_path / "adapter")
    untouched = load_gpt2(tmp_path / "base" / "model.safetensors")
    mine = load_peft(untouched, tmp_path / "adapter").eval()
    torch.testing.assert_close(mine(IDX)[0], model(IDX).logits, rtol=0, atol=1e-4)
    export_peft(mine, tmp_path / "again")  # and back: rank and alpha patterns survive
    loaded = peft.PeftModel.from_pretrained(gpt2(transformers), tmp_path / "again").eval()
    torch.testing.assert_close(loaded(IDX).logits, model(IDX).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "pissa"},
                                     {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"}])
def test_adapters_that_are_not_plain_lora_are_refused(peft, transformers, tmp_path, options):
    config = peft.LoraConfig(r=4, target_modules=["c_fc"], fan_in_fan_out=True, **options)
    model = peft.get_peft_model(gpt2(transformers), config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no plain LoRA adapter"):
        load_peft(GPT(GPTConfig(32, 60, 2, 2, 16)), tmp_path)


@pytest.mark.parametrize("method", ["lora", "loraga"])
def test_a_merged_checkpoint_is_a_plain_hf_model(transformers, tmp_path, method):
    gpt2(transformers).save_pretrained(tmp_path / "base")
    model = adapted(load_gpt2(tmp_path / "base" / "model.safetensors"), method)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merge_and_save(model, tmp_path / "merged")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(loaded(IDX).logits, model(IDX)[0], rtol=0, atol=1e-4)
    names = huggingface._read_tensors(tmp_path / "merged" / "model.safetensors").keys()
    assert not any("lora" in name or "linear" in name for name in names)


def test_a_merged_output_layer_is_no_longer_tied(transformers, tmp_path):
    gpt2(transformers).save_pretrained(tmp_path / "base")
    model = lora.apply_lora(load_gpt2(tmp_path / "base"), 3, targets=["lm_head"]).eval()
    model.lm_head.lora_B.data.normal_()
    merge_and_save(model, tmp_path / "merged")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(loaded(IDX).logits, model(IDX)[0], rtol=0, atol=1e-4)


def run(*command, **options):
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True,
                          cwd=ROOT, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two finished runs of the real train.py, one of them exported."""
    directories = []
    flags = "--steps 2 --lr 0.03 --warmup 0 --device cpu --export peft".split()
    for method in ("lora", "loraga"):
        directories.append(tmp_path_factory.mktemp(method) / "o")
        where = ["--out_dir", str(directories[-1])]
        train.train(train.parse_args(["--method", method, *flags, *where]))
    return directories


def test_a_half_precision_checkpoint_is_loaded_in_float32(transformers, tmp_path):
    gpt2(transformers).half().save_pretrained(tmp_path)
    model = load_gpt2(tmp_path / "model.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_runs_are_exported_and_merged_from_the_command_line(finished, peft, transformers, tmp_path):
    shipped = base.load()
    merge_and_save(shipped, tmp_path / "shipped")
    idx = torch.arange(40)[None]

    def contents(directory):
        return {file.name: file.read_bytes() for file in directory.iterdir()}

    for directory in finished:
        model = lora.load_adapter(base.load(), runs.load_run(directory)[1])
        before = contents(directory / "peft")
        for what in ("peft", "merged"):
            assert run("export.py", what, directory).returncode == 0
        assert contents(directory / "peft") == before  # as --export wrote it
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "shipped")
        adapter = peft.PeftModel.from_pretrained(theirs, directory / "peft").eval()
        merged = transformers.AutoModelForCausalLM.from_pretrained(directory / "merged").eval()
        for other in (adapter, merged):
            torch.testing.assert_close(other(idx).logits, model(idx)[0], rtol=0, atol=1e-4)


def test_runs_are_sampled_one_below_the_other_each_on_the_untouched_base(finished, tmp_path):
    flags = "--method full --steps 2 --lr 0.003 --warmup 0 --device cpu --out_dir"
    train.train(train.parse_args([*flags.split(), str(tmp_path / "full")]))
    whole = base.build(load_file(tmp_path / "full" / "model.pt"))
    models = [base.load(), whole]
    models += [lora.load_adapter(base.load(), runs.load_run(d)[1]) for d in finished]
    prompt, encoding = "This function returns the", tokenizer.load()
    adapters = []
    for directory in (tmp_path / "full", *finished):
        adapters += ["--adapter", directory]
    result = run("sample.py", *adapters, "--prompt", prompt, "--tokens", "8")
    lines = result.stdout.splitlines()
    assert len(lines) == 4 and lines[0].startswith("base ") and str(finished[1]) in lines[3]
    answers = [line.split(maxsplit=1)[1] for line in lines]
    assert len(set(answers)) == 4  # four models, four answers
    idx = torch.tensor([encoding.encode(prompt)])
    for answer, model in zip(answers, models):
        tokens = model.generate(idx, 8, temperature=0)[0].tolist()
        assert answer == encoding.decode(tokens).split("\n")[0]
    assert run("export.py", "merged", tmp_path / "full").returncode == 0
    merged = huggingface._read_tensors(next((tmp_path / "full" / "merged").glob("*model*")))
    assert torch.equal(merged["transformer.wte.weight"], whole.transformer.wte.weight)


def test_without_a_prompt_the_terminal_is_asked_line_by_line(finished):
    flags = ["--adapter", finished[0], "--tokens", "3"]
    for typed in ("What is 47 plus 86?\nReturns the\n\nnot read\n", "What is 1?\nReturns the"):
        process = run("sample.py", *flags, input=typed)
        lines = process.stdout.replace("prompt (empty to end): ", "").splitlines()
        said = [line for line in lines if line]
        assert process.returncode == 0 and len(said) == 2 * 2, process.stderr
        assert [line.split()[0] for line in said] == ["base", str(finished[0])] * 2
        one = run("sample.py", *flags, "--prompt", "Returns the").stdout.splitlines()
        assert said[2:] == one  # the second prompt is answered as it would be alone


def test_bad_input_to_the_small_commands_is_one_sentence_and_exit_code_2(tmp_path):
    for command in (["sample.py", "--prompt", ""],
                    ["sample.py", "--prompt", "x", "--adapter", tmp_path],
                    ["sample.py", "--prompt", "x", "--temperature", "-1"],
                    ["export.py", "peft", tmp_path],
                    ["export.py", "onnx", tmp_path],
                    ["train.py", "--init_from", tmp_path / "none.bin"],
                    ["train.py", "--init_from", (tmp_path / "x.bin").as_uri()]):
        result = run(*command)
        error = result.stderr
        assert error.count("\n") == 1 and "Traceback" not in error, error
        assert result.returncode == 2, error


@pytest.mark.parametrize("name, of_gpt2, of_another", [
    ("vocab.json", '{"Ġthe": 262}', '{"Ġthe": 2620}'),
    ("tokenizer.json", '{"model": {"vocab": {"\\u0120the":262}}}', '{"model": {"vocab": []}}')])
def test_a_gpt2_of_another_vocabulary_is_not_read_with_gpt2s(tmp_path, name, of_gpt2, of_another):
    for checkpoint in (tmp_path, tmp_path / "model.safetensors"):
        (tmp_path / name).write_text(of_gpt2, encoding="utf-8")
        tokenizer.check_gpt2s(checkpoint)
        (tmp_path / name).write_text(of_another, encoding="utf-8")
        with pytest.raises(InputError, match=f"{name} is not GPT-2's vocabulary"):
            tokenizer.load_for(str(checkpoint))


def test_streamed_pieces_join_to_the_text_even_where_a_character_takes_several_tokens():
    encoding = tokenizer.load()
    text = "naïve ∂L/∂W — 日本語 🙂 end"
    pieces = list(sample.pieces(encoding, encoding.encode_ordinary(text)))
    assert "".join(pieces) == text and len(pieces) > 8
    byte = encoding.encode_single_token(b"\xff")  # of no character
    assert "".join(sample.pieces(encoding, [byte] * 2)) == "\ufffd" * 2


# What a careless change would break

def sampled(monkeypatch, capsys, *flags):
    monkeypatch.setattr("sys.argv", ["sample.py", "--device", "cpu", *map(str, flags)])
    sample.main()
    return capsys.readouterr().out


def test_sample_takes_temperature_top_k_samples_seed_and_whole(monkeypatch, capsys):
    model, encoding, prompt = base.load(), tokenizer.load(), "This function returns"
    idx = torch.tensor([encoding.encode(prompt)])
    flags = ["--prompt", prompt, "--tokens", 30, "--temperature", 1.5, "--top_k", 40, "--seed", 3]
    expected = [encoding.decode(model.generate(idx, 30, 1.5, 40, seed)[0].tolist())
                for seed in (3, 4)]
    assert expected[0] != expected[1] and any("\n" in text for text in expected)
    one_line = sampled(monkeypatch, capsys, *flags, "--samples", 2)
    assert one_line == "".join(f"base  {text.partition(chr(10))[0]}\n" for text in expected)
    whole = sampled(monkeypatch, capsys, *flags, "--samples", 2, "--whole")
    assert whole == "".join(f"base  {text}\n" for text in expected)


def test_runs_of_gpt2_are_sampled_and_exported_on_it_and_not_beside_runs_of_another_base(
        transformers, tmp_path, monkeypatch, capsys):
    gpt2(transformers, vocab_size=2048).save_pretrained(tmp_path / "base")
    names, starts, load = [], {"ours": str(tmp_path / "base"), "shipped": None}, tokenizer.load

    def load_ours(name="nanolora"):
        names.append(name)
        return load()

    monkeypatch.setattr(tokenizer, "load", load_ours)
    for name, start in starts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(
            json.dumps({"settings": {"method": "lora", "init_from": start}}))
        model = lora.apply_lora(runs.load_base(start), 2)
        torch.save(lora.adapter_state_dict(model), tmp_path / name / "adapter.pt")
    lines = sampled(monkeypatch, capsys, "--prompt", "x", "--tokens", 3,
                    "--adapter", tmp_path / "ours")
    assert names == ["gpt2"] and len(lines.splitlines()) == 2
    with pytest.raises(SystemExit):
        sampled(monkeypatch, capsys, "--prompt", "x", "--adapter", tmp_path / "ours",
                "--adapter", tmp_path / "shipped")
    assert "different base models" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["export.py", "merged", str(tmp_path / "ours")])
    export.main()
    save(tmp_path / "shipped" / "adapter.pt", base.contents(base.load()))  # as of `full`
    monkeypatch.setattr("sys.argv", ["export.py", "peft", str(tmp_path / "shipped")])
    with pytest.raises(SystemExit):
        export.main()
    assert "shipped: a PEFT adapter needs LoRA layers" in capsys.readouterr().err
    merged = load_gpt2(tmp_path / "ours" / "merged")
    torch.testing.assert_close(merged(IDX)[0], load_gpt2(tmp_path / "base")(IDX)[0])


def test_gpt_generates_past_its_block_size_from_the_last_tokens():
    model, seen = GPT(GPTConfig(8, 60, 1, 2, 16)), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    told = model.generate(IDX[:, :5], 10)
    for T, looked_at in enumerate(seen, start=5):
        assert torch.equal(looked_at, told[:, max(0, T - 8):T])


@pytest.mark.parametrize("top_k, temperature", [(3, 1.0), (None, 0.1), (None, 3.0)])
def test_gpt_samples_as_softmax_of_logits_over_temperature(top_k, temperature):
    model = GPT(GPTConfig(8, 6, 1, 2, 16)).eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.transformer.wte.weight, std=0.3)
    idx = torch.zeros(20000, 1, dtype=torch.long)
    logits = model(idx[:1])[0][0, -1]
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    found = model.generate(idx, 1, temperature, top_k)[:, 1].bincount(minlength=6) / 20000
    torch.testing.assert_close(found, torch.softmax(logits / temperature, -1), rtol=0, atol=0.015)


def test_what_is_downloaded_is_not_downloaded_again(tmp_path, monkeypatch):
    urls = []

    def download(url, path):
        urls.append(url)
        Path(path).write_text("")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        huggingface._fetch("https://example.org/a/model.bin?x=1")
    assert urls == ["https://example.org/a/config.json", "https://example.org/a/model.bin"]


def test_a_file_url_is_read_again(transformers, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for seed in range(2):
        model = gpt2(transformers)
        torch.nn.init.normal_(model.transformer.wte.weight, mean=seed)
        model.save_pretrained(tmp_path)
        again = load_gpt2((tmp_path / "model.safetensors").as_uri())
        assert torch.equal(again.transformer.wte.weight, model.transformer.wte.weight)


@pytest.mark.parametrize("changes", [{"scale_attn_weights": False}, {"tie_word_embeddings": False},
                                     {"scale_attn_by_inverse_layer_idx": True}])
def test_other_attentions_are_no_gpt2(transformers, tmp_path, changes):
    gpt2(transformers, **changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not describe a GPT-2|is not the GPT-2"):
        load_gpt2(tmp_path)


@pytest.mark.parametrize("change", [
    {"peft_type": "IA3"}, {"lora_bias": True}, {"target_parameters": ["x"]},
    *({"init_lora_weights": start} for start in ("pissa_niter_4", "olora", "corda", "loftq",
                                                 "lora_ga"))])
def test_each_other_kind_of_adapter_is_refused(tmp_path, change):
    export_peft(lora.apply_lora(GPT(GPTConfig(32, 60, 1, 2, 16)), 2), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match="holds no plain LoRA adapter"):
        load_peft(GPT(GPTConfig(32, 60, 1, 2, 16)), tmp_path)


def test_an_unknown_tensor_is_refused_and_lora_alpha_is_8_where_it_is_not_written(tmp_path):
    export_peft(lora.apply_lora(GPT(GPTConfig(32, 60, 1, 2, 16)), 2, also_train="ln_f"), tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    without = {key: value for key, value in config.items()
               if key not in ("lora_alpha", "alpha_pattern")}
    path.write_text(json.dumps(without))
    model = load_peft(GPT(GPTConfig(32, 60, 1, 2, 16)), tmp_path)
    assert {layer.scale for layer in lora.lora_layers(model).values()} == {4}
    path.write_text(json.dumps({**config, "modules_to_save": ["f"]}))  # no whole name
    with pytest.raises(ValueError, match="ln_f.* which is not of plain LoRA"):
        load_peft(GPT(GPTConfig(32, 60, 1, 2, 16)), tmp_path)


def test_gpt2_gets_its_dropout_and_a_classifiers_adapter_no_task(transformers, tmp_path):
    gpt2(transformers).save_pretrained(tmp_path)
    assert load_gpt2(tmp_path, dropout=0.3).config.dropout == 0.3
    classifier = torch.nn.Sequential(torch.nn.Linear(4, 4))
    export_peft(lora.apply_lora(classifier, 2, targets="0"), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] is None


def test_merged_config_has_the_models_shape(tmp_path):
    model = GPT(GPTConfig(32, 60, 1, 2, 16))
    merge_and_save(model, tmp_path)
    assert load_gpt2(tmp_path).config == model.config


def test_an_alpha_pattern_is_an_expression(peft, transformers, tmp_path):
    options = dict(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True,
                   alpha_pattern={r"h\.1\..*c_\w+": 7})
    theirs = peft.get_peft_model(gpt2(transformers), peft.LoraConfig(r=4, lora_alpha=9, **options))
    theirs.save_pretrained(tmp_path)
    model = load_peft(GPT(GPTConfig(32, 60, 2, 2, 16)), tmp_path)
    for name, layer in lora.lora_layers(model).items():
        assert layer.scale * 4 == (7 if name.startswith("transformer.h.1.") else 9)
