"""lora.py in other people's models: those of transformers and torch.nn, with HF's Trainer and PEFT.

Every model is tiny, random and made from its config, so that nothing is downloaded. What an adapted
model should compute comes from the plain model, with W0 + s·BA written into its weights.
"""
import copy
import warnings

import pytest
import torch
import torch.nn as nn

import lora
from lora import LoRALinear, apply_lora, lora_ga_init, lora_layers

transformers = pytest.importorskip("transformers")

IDS = torch.randint(4, 50, (2, 9), generator=torch.Generator().manual_seed(0))
PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SOUND = torch.rand(2, 8, 20, generator=torch.Generator().manual_seed(2))
TEXT = {"input_ids": IDS}

WORDS = dict(vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2)
BLOCKS = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
BERT = dict(BLOCKS, **WORDS)
LLAMA = dict(BERT, num_key_value_heads=1, head_dim=8)
T5 = dict(WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
MAMBA = dict(WORDS, hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=2)
VIT = dict(BLOCKS, image_size=16, patch_size=8)
CLIP = dict(text_config=dict(BERT, max_position_embeddings=12), vision_config=VIT)
WHISPER = dict(WORDS, d_model=16, num_mel_bins=8, max_source_positions=10, max_target_positions=12,
               encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32,
               decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32)

FAMILIES = {  # the class: its config, targets, and inputs
    "LlamaForCausalLM": (LLAMA, ["q_proj", "down_proj", "lm_head"], TEXT),
    "Qwen2ForCausalLM": (LLAMA, ["v_proj", "up_proj"], TEXT),
    "MistralForCausalLM": (LLAMA, ["self_attn.o_proj"], TEXT),
    "GemmaForCausalLM": (LLAMA, ["k_proj", "gate_proj"], TEXT),
    "PhiForCausalLM": (BERT, ["dense", "fc2"], TEXT),
    "GPTNeoXForCausalLM": (BERT, ["query_key_value", "dense_4h_to_h"], TEXT),
    "BertForMaskedLM": (BERT, ["query", "attention.output.dense"], TEXT),
    "BertForSequenceClassification": (dict(BERT, num_labels=3), ["key", "pooler.dense"], TEXT),
    "RobertaForMaskedLM": (BERT, ["value", "intermediate.dense"], TEXT),
    "T5ForConditionalGeneration": (T5, ["q", "DenseReluDense.wo"],
                                   {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)}),
    "ViTForImageClassification": (VIT, ["q_proj", "fc2"], {"pixel_values": PIXELS}),
    "WhisperForConditionalGeneration": (WHISPER, ["q_proj", "fc2"],
                                        {"input_features": SOUND, "decoder_input_ids": IDS}),
    "CLIPModel": (CLIP, ["q_proj", "fc2"], {"input_ids": IDS, "pixel_values": PIXELS}),
    "MambaForCausalLM": (MAMBA, ["in_proj", "x_proj", "dt_proj", "out_proj"], TEXT),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small gain nothing from more, and wait long for them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(family="LlamaForCausalLM", **changes):
    """A random model, the same at every call; no bias in it is zero, and no norm trivial."""
    torch.manual_seed(0)
    model_class = getattr(transformers, family)
    model = model_class(model_class.config_class(**{**FAMILIES[family][0], **changes})).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def adapt(model, targets, rank=2, seed=3, **options):
    """The model with factors as if they had been trained, and s = 1.5 at rank 2."""
    apply_lora(model, rank, alpha=3, targets=targets, **options)
    torch.manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_A.data.normal_(std=0.3)
        layer.lora_B.data.normal_(std=0.3)
    return model


def explicit(plain, adapted, s=1.5):
    """The plain model with W0 + s·BA in place of each weight W0 that the other one adapts."""
    dense = copy.deepcopy(plain)
    for name, layer in lora_layers(adapted).items():
        module, BA = dense.get_submodule(name), layer.lora_B.data @ layer.lora_A.data
        module.weight = nn.Parameter(module.weight.data + s * BA)
    return dense


@torch.no_grad()  # else HF's T5 changes its attention kernel where its position bias is frozen
def output(model, inputs=TEXT):
    return model(**inputs)[0]


def assert_near(x, y, error=1e-4):
    assert 0 < y.norm() and (x - y).norm() <= error * y.norm()


def assert_chain_rule(adapted, dense, s=1.5, error=1e-3):
    """∇A = s·Bᵀ ∇W and ∇B = s·∇W Aᵀ, with ∇W from autograd through the explicit dense weight."""
    for name, layer in lora_layers(adapted).items():
        G = dense.get_submodule(name).weight.grad
        assert_near(layer.lora_A.grad, s * layer.lora_B.T @ G, error)
        assert_near(layer.lora_B.grad, s * G @ layer.lora_A.T, error)


def factors(model):
    return {f"{name}.{factor}" for name in lora_layers(model) for factor in ("lora_A", "lora_B")}


def moved(model, before):
    return {key for key, p in model.state_dict().items() if not torch.equal(p, before[key])}


def moved_by_a_step(model, inputs=TEXT):
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(lora.lora_plus_groups(model, lr=0.01), weight_decay=0)
    model(**inputs)[0].square().mean().backward()
    optimizer.step()
    return moved(model, before)


def next_token_loss(model, ids):
    return model(ids, labels=ids).loss


# ---- Hugging Face's models -----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_starts_as_it_was_and_a_step_moves_its_adapter_alone(family):
    plain, (_, targets, inputs) = build(family), FAMILIES[family]
    fresh = apply_lora(build(family), rank=2, targets=targets)
    assert torch.equal(output(fresh, inputs), output(plain, inputs))
    model = adapt(build(family), targets)  # at B = 0, A would have no gradient
    assert moved_by_a_step(model, inputs) == factors(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapted_model_and_its_saved_merge_compute_with_w0_plus_s_ba(family, tmp_path):
    plain, (_, targets, inputs) = build(family), FAMILIES[family]
    model = adapt(build(family), targets, dropout=0.5)  # idle, for the model is in eval mode
    dense = explicit(plain, model)
    expected = output(dense, inputs)
    assert (expected - output(plain, inputs)).norm() > 0.01 * expected.norm()
    assert_near(output(model, inputs), expected)
    for either in (model, dense):
        either(**inputs)[0].square().mean().backward()
    assert_chain_rule(model, dense)
    lora.merge_and_unload(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.save_pretrained(tmp_path)
    assert_near(output(type(model).from_pretrained(tmp_path).eval(), inputs), expected)


@pytest.mark.parametrize("family, target", [("T5ForConditionalGeneration", "wo"),
                                            ("MambaForCausalLM", "lm_head")])
def test_a_model_that_casts_to_a_layers_dtype_finds_the_bases(family, target):
    model, inputs = adapt(build(family).bfloat16(), target), FAMILIES[family][2]
    expected = output(explicit(build(family), model), inputs)
    assert_near(output(model, inputs).float(), expected, error=0.05)


def test_a_tied_output_layer_is_adapted_and_saved_apart_from_the_embedding(tmp_path):
    plain = build(tie_word_embeddings=True)
    model = adapt(copy.deepcopy(plain), "lm_head")
    dense = explicit(plain, model)
    assert_near(model.get_output_embeddings().weight, dense.lm_head.weight)
    greedy = dict(max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(IDS, **greedy), dense.generate(IDS, **greedy))
    lora.merge_and_unload(model)
    assert torch.equal(model.get_input_embeddings().weight, plain.lm_head.weight)
    model.config.tie_word_embeddings = False  # else some versions tie them again on loading
    model.save_pretrained(tmp_path)
    assert_near(output(type(model).from_pretrained(tmp_path).eval()), output(dense))


def test_a_head_trains_and_travels_with_the_adapter_if_it_is_asked_to():
    classifier = "BertForSequenceClassification"
    frozen = adapt(build(classifier), "query")
    assert moved_by_a_step(frozen) == factors(frozen)
    assert not any("classifier" in key for key in lora.adapter_state_dict(frozen))

    model = adapt(build(classifier), "query")
    model.classifier.requires_grad_(True)
    trained = factors(model) | {"classifier.weight", "classifier.bias"}
    assert moved_by_a_step(model) == trained
    state, fresh = lora.adapter_state_dict(model), build(classifier)
    fresh.classifier.weight.data.normal_()  # a new head is random, another one each time
    lora.load_adapter(fresh, state)
    assert trained <= state.keys() and torch.equal(output(fresh), output(model))
    assert {name for name, p in fresh.named_parameters() if p.requires_grad} == trained


def test_the_trainer_trains_the_adapter_alone(tmp_path):
    pytest.importorskip("accelerate")
    model = apply_lora(build(), rank=2, targets=["q_proj", "down_proj"])
    before = copy.deepcopy(model.state_dict())
    arguments = transformers.TrainingArguments(tmp_path, max_steps=3, learning_rate=0.01,
                                               use_cpu=True, save_strategy="no", report_to=[])
    rows = [{"input_ids": ids, "labels": ids} for ids in IDS]
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    assert moved(model, before) == factors(model)


@pytest.mark.parametrize("rslora", [False, True])
def test_outputs_and_gradients_are_pefts(rslora):
    peft = pytest.importorskip("peft")
    targets, close = ["q_proj", "down_proj"], dict(rtol=1e-5, atol=1e-6)
    mine = adapt(build(), targets, rank=4, rslora=rslora)
    config = peft.LoraConfig(r=4, lora_alpha=3, target_modules=targets, use_rslora=rslora)
    theirs = peft.get_peft_model(build(), config).eval()
    pairs = []
    for key, factor in mine.named_parameters():
        if key in factors(mine):
            pairs.append((factor, theirs.get_parameter(f"base_model.model.{key}.default.weight")))
            pairs[-1][1].data.copy_(factor)
    torch.testing.assert_close(output(mine), output(theirs), **close)
    for model in (mine, theirs):
        next_token_loss(model, IDS).backward()
    for factor, other in pairs:
        torch.testing.assert_close(factor.grad, other.grad, **close)


# ---- LoRA-GA and autocast ------------------------------------------------------------------------


def test_a_state_dict_taken_after_lora_ga_loads_without_it():
    model, again = (apply_lora(build(), rank=3, targets=["q_proj", "up_proj"]) for _ in range(2))
    lora_ga_init(model, [IDS], next_token_loss)
    assert moved_by_a_step(model) == factors(model)
    again.load_state_dict(model.state_dict())
    assert torch.equal(output(again), output(model))
    onto_the_base = lora.load_adapter(build(), lora.adapter_state_dict(again))
    assert_near(output(onto_the_base), output(model), error=1e-5)
    assert (output(model) - output(build())).norm() > 0.001 * output(model).norm()


def test_lora_ga_names_a_layer_that_the_loss_does_not_use_and_leaves_it_alone():
    model, unused = build("BertForSequenceClassification"), "bert.pooler.dense"
    apply_lora(model, rank=2, targets=["query", unused])
    before, logits = copy.deepcopy(model.state_dict()), output(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lora_ga_init(model, [IDS], lambda model, ids: model.bert(ids)[0].square().mean())
    [sentence] = [str(w.message) for w in caught if "LoRA-GA" in str(w.message)]
    assert f"{unused} has no gradient" in sentence
    parts = ("linear.weight", "lora_A", "lora_B", "lora_A0", "lora_B0")
    started = [name for name in lora_layers(model) if name != unused]
    assert moved(model, before) == {f"{name}.{part}" for name in started for part in parts}
    assert_near(output(model), logits)


def merge(model, gradients):
    lora.merge_lora(model)


def start_with_lora_ga(model, gradients):
    for layer in model.values():
        layer.lora_B.data.zero_()
    # The loss has no matrix product of its own, which autocast would round.
    lora_ga_init(model, gradients, lambda m, G: sum((m[key].weight * G[key]).sum() for key in m))


def step_with_the_preconditioner(model, gradients):
    for name, layer in model.items():
        layer.lora_A.grad, layer.lora_B.grad = gradients[0][name][:2], gradients[0][name][:, :2]
    optimizer = torch.optim.SGD(lora.lora_plus_groups(model, lr=0.1))
    lora.attach_preconditioner(optimizer, model)
    optimizer.step()


@pytest.mark.parametrize("change", [merge, start_with_lora_ga, step_with_the_preconditioner])
def test_autocast_does_not_round_what_is_done_to_the_weights(change):
    ends = []
    for enabled in (False, True):
        torch.manual_seed(0)  # for "wide", LoRA-GA's SVD is a random sketch
        model = nn.ModuleDict({"narrow": nn.Linear(20, 30), "wide": nn.Linear(520, 600)})
        gradients = [{name: torch.randn_like(layer.weight) for name, layer in model.items()}]
        adapt(model, ["narrow", "wide"])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            change(model, gradients)
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


# ---- torch.nn's models ---------------------------------------------------------------------------


@pytest.mark.parametrize("reader, kernel, targets", [
    (nn.MultiheadAttention, "_native_multi_head_attention", ["out_proj"]),
    (nn.TransformerEncoderLayer, "_transformer_encoder_layer_fwd",
     ["out_proj", "linear1", "linear2"]),
], ids=["attention", "encoder"])
def test_a_module_that_reads_a_weight_finds_w0_plus_s_ba(reader, kernel, targets, monkeypatch):
    def run(model):
        return model(x, x, x)[0] if reader is nn.MultiheadAttention else model(x)

    torch.manual_seed(0)
    plain, x = reader(16, 2, dropout=0.0, batch_first=True).double(), torch.randn(3, 7, 16).double()
    model = adapt(copy.deepcopy(plain), targets)
    dense = explicit(plain, model)
    for either in (model, dense):
        run(either).pow(3).mean().backward()  # after a norm, the sum of squares is constant
    assert_near(run(model), run(dense), error=1e-10)
    assert_chain_rule(model, dense, error=1e-10)
    calls, original = [], getattr(torch, kernel)
    monkeypatch.setattr(torch, kernel, lambda *args: calls.append(kernel) or original(*args))
    with torch.no_grad():
        expected = run(dense.eval())
        assert_near(run(model.eval()), expected, error=1e-10)
        lora.merge_lora(model)
        assert_near(run(model), expected, error=1e-10)
        assert len(calls) == 3 and (expected - run(plain.eval())).norm() > 0.1


def test_a_layer_under_two_names_is_wrapped_and_unwrapped_under_both():
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 6), torch.randn(5, 6)
    plain = nn.Sequential(linear, nn.Tanh(), linear)
    model = adapt(copy.deepcopy(plain), "0")
    expected = explicit(plain, model)(x)
    assert model[0] is model[2] and isinstance(model[2], LoRALinear)
    assert_near(model(x), expected)
    lora.merge_and_unload(model)
    assert model[0] is model[2] and type(model[2]) is nn.Linear
    assert_near(model(x), expected)


def test_vmap_over_stacked_adapters_is_a_loop_over_them():
    torch.manual_seed(0)
    plain, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), torch.randn(7, 6)
    adapters = [adapt(copy.deepcopy(plain), ["0", "2"], seed=seed) for seed in range(3)]
    parameters, _ = torch.func.stack_module_state(adapters)
    stacked = {key: parameters[key].detach() for key in factors(adapters[0])}
    y = torch.vmap(lambda state: torch.func.functional_call(adapters[0], state, x))(stacked)
    assert_near(y, torch.stack([model(x) for model in adapters]))


def test_a_hook_on_the_frozen_layer_sees_that_layers_own_output():
    def look(linear, inputs, y):
        seen.append((y, inputs[0] @ linear.weight.T + linear.bias))

    model, seen = adapt(build("BertForMaskedLM"), ["query", "output.dense"]), []
    for layer in lora_layers(model).values():
        layer.linear.register_forward_hook(look)
    output(model)
    assert len(seen) == len(lora_layers(model))
    for y, own in seen:  # only now, when the adapter has added its part: not to y itself
        assert_near(y, own)


# ---- What apply_lora takes, and what it refuses or warns of --------------------------------------


def test_one_string_is_one_name():
    model = apply_lora(build(), rank=2, targets="q_proj")
    assert [name.rpartition(".")[2] for name in lora_layers(model)] == ["q_proj", "q_proj"]


MOE = dict(LLAMA, num_key_value_heads=2, moe_intermediate_size=8, num_experts_per_tok=2)
QWEN2_MOE = dict(MOE, num_experts=4, shared_expert_intermediate_size=8)
DEEPSEEK = dict(MOE, n_routed_experts=4, first_k_dense_replace=1, n_group=1, topk_group=1,
                q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8)


@pytest.mark.parametrize("family, config", [("Qwen2MoeForCausalLM", QWEN2_MOE),
                                            ("DeepseekV3ForCausalLM", DEEPSEEK)])
def test_experts_that_are_3d_parameters_stay_frozen_with_a_warning(family, config):
    model_class = getattr(transformers, family)
    model = model_class(model_class.config_class(**config))
    with pytest.warns(UserWarning, match=r"layers\.1\.mlp\.experts\.down_proj"):
        apply_lora(model, rank=2, targets=["gate_proj", "up_proj", "down_proj"])
    adapted = lora_layers(model)
    assert "model.layers.1.mlp.experts" not in str(adapted) and len(adapted) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none where no expert has that name
        apply_lora(model_class(model_class.config_class(**config)), rank=2, targets="o_proj")


def test_conv1d_is_refused():
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=16)
    with pytest.raises(ValueError, match="c_attn.* matches no linear layer.*Conv1D"):
        apply_lora(transformers.GPT2LMHeadModel(config))


@pytest.mark.parametrize("dtype, shape", [(torch.uint8, (32, 1)), (torch.bfloat16, (16, 1)),
                                          (torch.int8, (8, 8)), (torch.float8_e4m3fn, (8, 8))])
def test_a_packed_or_quantised_weight_is_refused(dtype, shape):
    model = nn.ModuleDict({"plain": nn.Linear(8, 8), "fc": nn.Linear(8, 8)})
    codes = torch.zeros(shape).to(dtype)  # bitsandbytes' layers are nn.Linear that hold such
    model["fc"].weight = nn.Parameter(codes, requires_grad=False)
    with pytest.raises(ValueError, match="fc has a packed"):
        apply_lora(model, rank=1, targets=["plain", "fc"])
    assert not lora_layers(model) and model["plain"].weight.requires_grad


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_linear_layer_that_computes_something_else_is_refused():
    model = nn.ModuleDict({"plain": nn.Linear(8, 8), "fc": Doubled(8, 8)})
    with pytest.raises(ValueError, match="fc is a Doubled, whose forward is not"):
        apply_lora(model, rank=1, targets=["plain", "fc"])
    assert not lora_layers(model) and model["plain"].weight.requires_grad


# ---- After apply_lora ----------------------------------------------------------------------------


def test_a_base_checkpoint_loads_into_an_adapted_model():
    base, model = build("BertForMaskedLM"), adapt(build("BertForMaskedLM"), ["query", "decoder"])
    for p in base.parameters():
        p.data *= 1.1
    left = model.load_state_dict(base.state_dict(), strict=False)
    assert not left.unexpected_keys and all(".lora_" in key for key in left.missing_keys)
    assert_near(output(model), output(explicit(base, model)))


def test_merging_a_single_layer_gives_a_plain_one():
    layer, x = adapt(nn.ModuleDict({"fc": nn.Linear(6, 8)}), "fc")["fc"], torch.randn(3, 6)
    expected = layer(x)
    plain = lora.merge_and_unload(layer)
    assert type(plain) is nn.Linear
    assert_near(plain(x), expected)


@pytest.mark.parametrize("change", [lora.merge_lora, lora.merge_and_unload])
def test_a_weight_that_became_computed_after_apply_lora_is_not_merged(change):
    model, x = adapt(nn.ModuleDict({"fc": nn.Linear(6, 8)}), "fc"), torch.randn(3, 6)
    expected = model["fc"](x)
    nn.utils.parametrizations.weight_norm(model["fc"].linear)
    assert_near(model["fc"](x), expected)
    with pytest.raises(ValueError, match="computed weight"):
        change(model)
    assert_near(model["fc"](x), expected)


def test_an_adapted_model_can_be_traced():
    model, x = adapt(nn.Sequential(nn.Linear(6, 8)), "0"), torch.randn(3, 6)
    assert_near(torch.jit.trace(model, x)(x), model(x))
