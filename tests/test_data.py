"""Files, tokens, batches and what is measured on held-out data."""
import json
import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data import prepare, tasks, tokenizer
from data.files import InputError, about_input, command_parser, replace_file
from model import GPT, GPTConfig

ENCODING = tokenizer.load()
GOOD = '{"prompt": "a", "completion": "b"}\n'


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def some_pairs(count, longest=9):
    return [{"prompt": f"Say naïve {i}" + "!" * (i % 4), "completion": " word" * (1 + i % longest)}
            for i in range(count)]


def load_text(path, text, **more):
    """The task of a file with this text, given as a string or as bytes."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tasks.load(str(path), ENCODING, 16 if path.suffix == ".txt" else 64, **more)


def texts_of(task):
    """(prompt, completion) of each row, in the order of the file."""
    return [(ENCODING.decode(prompt), ENCODING.decode(completion))
            for prompt, completion in task.train + task.val]


def small_gpt(block_size=64):
    """A GPT in float64 whose predictions are far from even."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size, 2048, n_layer=2, n_head=2, n_embd=32)).double()
    model.lm_head.weight.data *= 20
    return model


# ---- Files and tokens ----


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), replace_file(tmp_path / "file") as file:
        file.write(b"new")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_errors_about_input_say_what_was_given(error):
    with pytest.raises(InputError, match="^--rank: too large$"), about_input("--rank"):
        raise error("too large")


@pytest.mark.parametrize("words", [["--rang", "4"], ["--rank", "x"], []])
def test_a_wrong_command_line_is_one_line_and_exit_code_2(words, capsys):
    parser = command_parser("What it does.\n\n    how", "python -m what")
    parser.add_argument("--rank", type=int, required=True)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("python -m what: ") and error.count("\n") == 1


def test_the_vocabulary_has_2048_tokens_and_each_digit_is_one():
    text = "What is 47 plus 86? 133\n  naïve ∂L/∂W — 1234567890"
    pieces = [ENCODING.decode_single_token_bytes(token) for token in ENCODING.encode_ordinary(text)]
    assert ENCODING.n_vocab == 2048
    assert b"".join(pieces) == text.encode()
    assert sum(piece.isdigit() for piece in pieces) == 17
    assert all(len(piece) == 1 for piece in pieces if any(48 <= byte < 58 for byte in piece))


@pytest.mark.parametrize("module, name", [(tokenizer, "PATH"), (tasks, "DOCS_VAL")])
def test_a_changed_byte_in_a_shipped_file_is_noticed(tmp_path, monkeypatch, module, name):
    contents = bytearray(getattr(module, name).read_bytes())
    contents[1000] ^= 1
    (tmp_path / "damaged").write_bytes(contents)
    monkeypatch.setattr(module, name, tmp_path / "damaged")
    with pytest.raises(InputError, match="damaged"):
        tasks.load_source(tokenizer.load(), 128)


def test_load_for_finds_the_vocabulary_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", lambda name: name)
    assert tokenizer.load_for("base").name == tokenizer.load_for("scratch").name == "nanolora"
    assert tokenizer.load_for("gpt2-xl") == tokenizer.load_for(str(tmp_path)) == "gpt2"
    (tmp_path / "vocab.json").write_text('{"\\u0120the": 262, "x": 7}')
    assert tokenizer.load_for(str(tmp_path / "model.safetensors")) == "gpt2"
    (tmp_path / "vocab.json").write_text('{"\\u0120the": 2620}')
    with pytest.raises(InputError, match="vocab.json is not GPT-2's vocabulary"):
        tokenizer.load_for(str(tmp_path))
    (tmp_path / "result.json").write_text('{"settings": {"init_from": "scratch"}}')
    assert tokenizer.load_for(str(tmp_path / "model.pt")).name == "nanolora"


def test_gpt2s_vocabulary_without_a_network_is_a_sentence(monkeypatch):
    def fail(name):
        raise ConnectionError
    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", fail)
    with pytest.raises(InputError, match="TIKTOKEN_CACHE_DIR"):
        tokenizer.load("gpt2")


# ---- Prompts with completions ----


def test_math_holds_out_500_sums_that_no_batch_has():
    task = tasks.load("math", ENCODING, 128)
    asked = {ENCODING.decode(prompt) for prompt, _ in task.train}
    held_out = {ENCODING.decode(prompt) for prompt, _ in task.val}
    assert len(held_out) == 500 and len(asked) == 7600 and not asked & held_out
    idx, targets = task.batch(0, 3, 64)
    for row, target in zip(idx.tolist(), targets.tolist()):
        question = ENCODING.decode(row).split("?")[0]
        a, b = re.findall(r"\d+", question)
        # The loss is taken on the answer and its newline, and on nothing else.
        assert ENCODING.decode([t for t in target if t != -1]) == f" {int(a) + int(b)}\n"


def test_math_is_what_the_stored_results_were_trained_on():
    task = tasks.load("math", ENCODING, 128)
    assert task.checksum == "c3ca2a7f"
    idx, _ = task.batch(0, 0, 2)
    questions = [ENCODING.decode(row).split("?")[0] for row in idx.tolist()]
    assert questions == ["What is 35 plus 76", "What is 66 plus 24"]


ROW_FORMS = {
    "pair": ({"prompt": "Hi", "completion": " you\n", "extra": 1}, ("Hi", " you\n")),
    "carriage return": ({"prompt": "Hi", "completion": "you\r\n"}, ("Hi", "you\n")),
    "chat": ({"messages": [{"role": "system", "content": "Be kind."},
                           {"role": "user", "content": "Hi"},
                           {"role": "assistant", "content": "Hello"},
                           {"role": "user", "content": "Bye"},
                           {"role": "assistant", "content": "See you"},
                           {"role": "user", "content": "Thanks"}]},
             ("system: Be kind.\nuser: Hi\nassistant: Hello\nuser: Bye\nassistant:", " See you\n")),
    "Alpaca": ({"instruction": "Translate", "input": "chat", "output": "cat"},
               ("instruction: Translate\ninput: chat\noutput:", " cat\n")),
    "Alpaca, empty input": ({"instruction": "Count", "input": "", "output": "1"},
                            ("instruction: Count\noutput:", " 1\n")),
    "scripts": ({"prompt": "你好 שלום 😀 \0", "completion": " مرحبا 🇫🇷\u2028"},
                ("你好 שלום 😀 \0", " مرحبا 🇫🇷\u2028\n")),
}


@pytest.mark.parametrize("form", ROW_FORMS)
def test_a_row_is_read_in_each_of_its_forms(tmp_path, form):
    row, pair = ROW_FORMS[form]
    line = json.dumps(row, ensure_ascii=False) + "\n"
    assert texts_of(load_text(tmp_path / "x.jsonl", 2 * line)) == [pair, pair]


LINES = [json.dumps(row, ensure_ascii=False) for row in some_pairs(4)]


@pytest.mark.parametrize("name, contents", [
    ("x.JSONL", "\n".join(LINES)),
    ("x.ndjson", "\n" + "\n\n".join(LINES) + "\n\n \n"),
    ("x.jsonl", "\r\n".join(LINES) + "\r\n"),
    ("x.jsonl", b"\xef\xbb\xbf" + "\n".join(LINES).encode()),
    ("x.json", json.dumps(some_pairs(4), indent=2)),
    ("rows", "\n" + "\n".join(LINES)),
    ("rows.dat", "[" + ",".join(LINES) + "]"),
], ids=["upper case", "blank lines", "CRLF", "byte order mark", "array", "by its first line",
        "by its array"])
def test_files_of_pairs_are_known_by_their_contents(tmp_path, name, contents):
    expected = [(row["prompt"], row["completion"] + "\n") for row in some_pairs(4)]
    assert texts_of(load_text(tmp_path / name, contents)) == expected


@pytest.mark.parametrize("ending", ["jsonl", "JSON", "NdJson"])
def test_a_damaged_file_of_pairs_is_not_taken_for_text(tmp_path, ending):
    with pytest.raises(InputError, match="line 1: not JSON"):
        load_text(tmp_path / f"x.{ending}", "{oops\n" + 100 * GOOD)


@pytest.mark.parametrize("contents", ["Plain words. ", '{"time": 3}\n', '[Verse]\n{"prompt": "a"} ',
                                      "{broken\n", GOOD[:-2] + " and more\n", "[1, 2]\n"])
def test_other_files_are_text(tmp_path, contents):
    task = load_text(tmp_path / "notes.txt", 100 * contents)
    tokens = [*task.train, *task.val.tokens]
    assert ENCODING.decode(tokens) == 100 * contents


@pytest.mark.parametrize("contents, sentence", [
    (GOOD + "{}\n", "x.jsonl, line 2: a row has"),
    (GOOD + "\n" + "oops\n", "line 3: not JSON"),
    ("[" + GOOD + ",\noops]", "line 3: not JSON"),
    ("[" + GOOD + ", 7]", "row 2: a row has"),
    (GOOD + '{"prompt": "a", "completion": 7}\n', "line 2: a row has"),
    (GOOD + '{"prompt": ["a"], "completion": "b"}\n', "line 2: a row has"),
    (GOOD + '{"prompt": "a", "completion": "\\r\\n"}\n', "line 2: the completion is empty"),
    ('{"prompt": "", "completion": "b"}\n', "line 1: the prompt is empty"),
    ('{"messages": "Hi"}\n', "line 1: a row has"),
    ('{"messages": [{"role": "user", "content": "Hi"}]}\n', "line 1: a row has"),
    ('{"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}\n', "line 1: a row"),
    ('{"messages": [{"role": "assistant", "content": "Hi"}]}\n', "line 1: the prompt is empty"),
    ('{"instruction": "Count", "output": ""}\n', "line 1: the completion is empty"),
    ('{"instruction": "Count", "input": 3, "output": "1"}\n', "line 1: a row has"),
    (GOOD + '{"prompt": "%s", "completion": "b"}\n' % ("a?" * 40), "line 2: the prompt has 80"),
    (GOOD, "has one pair"),
    ("\n\n", "is empty"),
    ("[]", "has no rows"),
    (GOOD.encode() + b'{"prompt": "caf\xe9"}\n', "line 2: not UTF-8"),
    (GOOD.encode("utf-16"), "is UTF-16: save it as UTF-8"),
])
def test_damaged_rows_are_refused_with_their_place(tmp_path, contents, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        load_text(tmp_path / "x.jsonl", contents)
    assert "\n" not in str(error.value)


def test_the_last_tenth_or_val_data_is_held_out_and_few_rows_warn(tmp_path, capsys):
    rows = some_pairs(1200)
    task = tasks.load(write_rows(tmp_path / "a.jsonl", rows[:40]), ENCODING, 64)
    assert (len(task.train), len(task.val)) == (36, 4)
    assert "only 4 pairs are held out" in capsys.readouterr().out
    task = tasks.load(str(tmp_path / "a.jsonl"), ENCODING, 64,
                      val_data=write_rows(tmp_path / "b.jsonl", rows))
    assert (len(task.train), len(task.val)) == (40, 500) and not capsys.readouterr().out
    first_and_last = [ENCODING.decode(task.val[i][0]) for i in (0, -1)]
    assert first_and_last == [rows[0]["prompt"], rows[-1]["prompt"]]


@pytest.mark.parametrize("name, val_data, sentence", [
    ("math", "pairs.jsonl", "--val_data goes with a file"),
    ("docs", None, "--data docs is neither math nor a file: python -m data.prepare"),
    ("notes.txt", "nowhere.txt", "--val_data nowhere.txt is neither"),
    ("notes.txt", "pairs.jsonl", "--data notes.txt holds text, and --val_data pairs.jsonl pairs"),
    ("pairs.jsonl", "notes.txt", "--data pairs.jsonl holds pairs, and --val_data notes.txt text"),
    (".", None, "--data . is neither"),
    ("short.txt", None, "--data short.txt is too short: 3 tokens to train on and 1 held out"),
])
def test_data_that_cannot_be_used_is_a_sentence(tmp_path, monkeypatch, name, val_data, sentence):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", some_pairs(20))
    (tmp_path / "notes.txt").write_text("Some words of a text. " * 400)
    (tmp_path / "short.txt").write_text("1234")
    with pytest.raises(InputError, match=sentence):
        tasks.load(name, ENCODING, 64, val_data)


def test_the_loss_of_a_padded_batch_is_that_of_its_completions_alone(tmp_path):
    rows = some_pairs(40)
    task = tasks.load(write_rows(tmp_path / "pairs.jsonl", rows), ENCODING, 64)
    model = small_gpt()
    pairs = task.train[:9]
    idx, targets = task.rows(pairs)
    assert targets.shape[1] < idx.shape[1]  # nothing is predicted within the prompts
    losses = []
    for prompt, completion in pairs:
        whole = torch.tensor([prompt + completion])
        logits = model(whole[:, :-1])[0][0, len(prompt) - 1:]
        losses.append(F.cross_entropy(logits, torch.tensor(completion), reduction="none"))
    expected = torch.cat(losses).mean()
    torch.testing.assert_close(model(idx, targets)[1], expected, rtol=1e-12, atol=0)


def test_measures_are_those_of_single_rows_and_of_generated_answers(tmp_path):
    task = tasks.load(write_rows(tmp_path / "pairs.jsonl", some_pairs(600)), ENCODING, 64)
    model = small_gpt()
    # Every third answer is what the model generates.
    for i in range(0, len(task.val), 3):
        prompt, _ = task.val[i]
        answer = model.generate(torch.tensor([prompt]), 3, temperature=0)[0, len(prompt):]
        task.val[i] = (prompt, answer.tolist())
    total = 0.0
    tokens = 0
    right = 0
    for prompt, completion in task.val:
        whole = torch.tensor([prompt + completion])
        logits = model(whole[:, :-1])[0][0, len(prompt) - 1:]
        total += F.cross_entropy(logits, whole[0, len(prompt):], reduction="sum").item()
        tokens += len(completion)
        answer = model.generate(whole[:, :len(prompt)], len(completion), temperature=0)
        right += torch.equal(answer, whole)
    found = task.measure(model)
    assert math.isclose(found["loss"], total / tokens, rel_tol=1e-12)
    assert found["exact match"] == right / len(task.val) and 20 <= right < 60
    quarter = task.measure(model, whole=False)
    task.val = task.val[::4]
    assert quarter == task.measure(model) != found


def test_rows_longer_than_the_context_lose_the_end_of_their_completion(tmp_path, capsys):
    name = write_rows(tmp_path / "pairs.jsonl", some_pairs(30, longest=30))
    task = tasks.load(name, ENCODING, 20)
    longer = [pair for pair in task.train + task.val if tasks.total_length(pair) > 21]
    assert f"{len(longer)} of 30 completions lose their end" in capsys.readouterr().out
    prompt, completion = longer[0]
    idx, targets = task.rows(longer[:1])
    assert idx.tolist() == [(prompt + completion)[:20]]
    assert targets.tolist() == [completion[:21 - len(prompt)]]


def test_samples_show_the_answer_and_the_right_one():
    task = tasks.load("math", ENCODING, 64)
    prompt, completion = task.val[0]
    question = ENCODING.decode(prompt)
    right = ENCODING.decode(completion).strip()

    class Model(GPT):
        def generate(self, idx, max_new_tokens, temperature):
            answer = torch.tensor([ENCODING.encode_ordinary(self.answer)])
            return torch.cat((idx, answer), dim=1)

    model = Model(GPTConfig(8, 2048, 1, 1, 1))
    for model.answer, shown in ((" 7\nand more", "7"), ("\n", "(nothing)")):
        assert task.samples(model, count=1) == [f"{question} {shown}   (right: {right})"]


# ---- Text, and batches of all kinds ----


def test_a_text_is_split_and_its_bits_per_byte_are_exact(tmp_path):
    text = "".join(f"Line {i}: naïve words.\r\n" for i in range(400))
    task = load_text(tmp_path / "notes.txt", text)
    tokens = [*task.train, *task.val.tokens]
    assert ENCODING.decode(tokens) == text.replace("\r\n", "\n")
    assert len(task.train) == int(0.9 * len(tokens))
    size = len(ENCODING.decode_bytes(task.val.tokens.tolist()))
    assert math.isclose(task.val.bits_per_byte(math.log(2) * size / len(task.val.tokens)), 1.0)
    (tmp_path / "val.txt").write_text(100 * "And another text. ")
    task = load_text(tmp_path / "notes.txt", text, val_data=str(tmp_path / "val.txt"))
    assert ENCODING.decode(task.val.tokens) == 100 * "And another text. "
    assert ENCODING.decode(task.train) == text.replace("\r\n", "\n")


def test_a_run_of_a_million_spaces_is_tokenized():
    text = "a" + 1_200_000 * " " + "b"
    assert ENCODING.decode(tasks.tokenize(text, ENCODING)) == text
    assert ENCODING.decode(tasks.encode(text, ENCODING)) == text


def test_text_is_evaluated_by_the_mean_of_its_windows(tmp_path):
    task = load_text(tmp_path / "notes.txt", "".join(f"Line {i}: words.\n" for i in range(2000)))
    tokens = task.train[:16 * 301 + 1]  # 301 windows, which are evaluated in two groups
    rows = torch.from_numpy(tokens[:-1].reshape(301, 16).astype(np.int64))
    targets = torch.from_numpy(tokens[1:].reshape(301, 16).astype(np.int64))
    model = small_gpt(block_size=16)
    held_out = tasks.HeldOutText(ENCODING, 16, tokens)
    assert math.isclose(held_out.evaluate(model, 10 ** 6), model(rows, targets)[1].item(),
                        rel_tol=1e-12)
    two = [0, 300]
    assert math.isclose(held_out.evaluate(model, 2), model(rows[two], targets[two])[1].item(),
                        rel_tol=1e-12)
    # The shortest text: its one window is all of it.
    task.train = task.train[:17]
    idx, targets = task.batch(0, 0, 3)
    assert (idx.numpy() == task.train[:-1]).all() and (targets.numpy() == task.train[1:]).all()


@pytest.mark.parametrize("data", ["math", "pairs.jsonl", "notes.txt"])
def test_batches_are_a_function_of_seed_and_step(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", some_pairs(300, longest=40))
    (tmp_path / "notes.txt").write_text("".join(f"Line {i}: some words.\n" for i in range(400)))
    task, again = (tasks.load(data, ENCODING, 256) for _ in range(2))
    batches = [task.batch(seed, step, 8) for seed in (0, 1) for step in (0, 1)]
    idx, targets = again.batch(0, 0, 8)
    assert torch.equal(idx, batches[0][0]) and torch.equal(targets, batches[0][1])
    for i, (one, _) in enumerate(batches):
        assert not any(torch.equal(one, other) for other, _ in batches[:i])


def test_a_batch_has_rows_of_like_lengths_where_lengths_differ(tmp_path):
    task = tasks.load(write_rows(tmp_path / "x.jsonl", some_pairs(300, longest=40)), ENCODING, 256)
    padding = []
    widths = []
    for step in range(32):
        idx, _ = task.batch(0, step, 8)
        widths.append(idx.shape[1])
        padding.append((idx == 0).double().mean().item())
    at_random = [task.rows([task.train[i] for i in np.random.default_rng(i).integers(270, size=8)])
                 for i in range(32)]
    assert np.mean(padding) < 0.5 * np.mean([(idx == 0).double().mean() for idx, _ in at_random])
    assert max(widths) > 2 * min(widths)  # short rows and long rows both have their batches
    assert tasks.load("math", ENCODING, 64).candidates == 1  # there it would save nothing


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt"])
def test_the_checksum_changes_with_a_token_of_either_part(tmp_path, name):
    lines = [f'{{"prompt": "Say {i}", "completion": " {i}"}}\n' for i in range(60)]
    edited = [lines, [*lines[:3], lines[3].replace("3", "4"), *lines[4:]],
              [*lines[:-1], lines[-1].replace("9", "8")]]
    if name == "x.txt":
        edited = [["A text. ", *lines] for lines in edited]
    sums = [load_text(tmp_path / name, "".join(lines)).checksum for lines in edited]
    again = load_text(tmp_path / name, "".join(edited[0])).checksum
    assert len(set(sums)) == 3 and again == sums[0]


def test_the_source_is_prose_of_which_the_shipped_base_has_the_stored_loss():
    source = tasks.load_source(ENCODING, 128)
    assert len(source.tokens) == 130_884
    # As all stored results have it: 3.174 before the first step.
    assert math.isclose(source.evaluate(GPT.from_pretrained()), 3.1744928, abs_tol=1e-5)


def test_the_source_is_the_same_text_in_another_vocabulary():
    ranks = {bytes([byte]): byte for byte in range(256)}
    of_bytes = tokenizer.tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks,
                                           special_tokens={})
    tokens = tasks.load_source(of_bytes, 128).tokens
    text = ENCODING.decode_bytes(tasks.load_source(ENCODING, 128).tokens.tolist())
    assert tokens.astype(np.uint8).tobytes() == text


def test_progress_says_how_much_time_is_left(monkeypatch, capsys):
    seconds = iter(range(0, 100, 2))
    monkeypatch.setattr(tasks.time, "perf_counter", lambda: next(seconds))
    assert list(tasks.show_progress("abcdefgh")) == list("abcdefgh")
    assert capsys.readouterr().out == "tokenized 25%, 18 s left\ntokenized 62%, 7 s left\n"


# ---- prepare ----


def test_prose_holds_no_code_and_code_no_prose():
    sentence = "This adds one to the only argument that it is given."
    docstring = f"x\n\n{sentence}\n\n>>> {sentence}\n2\n\na = b + c(d, e) * f[g] - h.i(j=k, l=m)"
    assert list(prepare.prose(docstring)) == [sentence + "\n"]
    kept = '    return "# kept"  # kept\n\nx = """\n# kept\n"""\nimport kept\n'
    source = 'def f():\n    """Doc."""\n    # why\n' + kept + '"""gone"""\n'
    assert prepare.without_comments(source) == "def f():\n" + kept


def test_documents_are_split_by_their_names():
    documents = [(f"python/{i}.py", f"{i}\n") for i in range(2000)]
    train, val = (set(text.split()) for text in prepare.split(documents))
    assert not train & val and len(train | val) == 2000 and 60 < len(val) < 140


def test_e2e_becomes_rows_and_its_references_are_gathered(tmp_path, monkeypatch):
    lines = ("name : Aromi | food : Indian||Aromi is Indian . \n"
             "name : Wok | food : Thai||Wok is Thai . \n"
             "name : Aromi | food : Indian||An Indian place is Aromi . \n")
    monkeypatch.setattr(prepare, "FOLDER", tmp_path)
    monkeypatch.setattr(prepare, "E2E", (tmp_path / "of_{}.txt").as_uri().replace("%7B%7D", "{}"))
    for name in ("train", "test"):
        (tmp_path / f"of_{name}.txt").write_text(lines)
    prepare.prepare_e2e()
    train, val = ([json.loads(line) for line in (tmp_path / f"e2e_{name}.jsonl").open()]
                  for name in ("train", "val"))
    assert train[2] == {"prompt": "name : Aromi | food : Indian ->",
                        "completion": " An Indian place is Aromi ."} and len(train) == 3
    assert val == [{**train[0], "references": ["Aromi is Indian .", "An Indian place is Aromi ."]},
                   {**train[1], "references": ["Wok is Thai ."]}]
    with pytest.raises(InputError, match="line 2: there is no"):
        prepare.e2e_rows("a||b\nc\n")


def test_a_failed_download_says_what_to_do(tmp_path):
    path = tmp_path / "shakespeare.txt"
    with pytest.raises(InputError, match=f"failed .*: save it as {path} and run this command"):
        prepare.download((tmp_path / "nowhere").as_uri(), path)
    path.write_text("To be")
    assert prepare.download("nowhere", path) == "To be"
