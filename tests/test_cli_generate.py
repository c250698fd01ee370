"""``mamba-np generate``: prompts, options and texts."""

import itertools
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import tokenizers
from cli_runner import PROMPT, error_of, json_of, output_of, run

from mamba_np import MambaForCausalLM, Tokenizer
from mamba_np.bundled import bundled_model_path
from mamba_np.cli.generate import PASSED_ON, generation_settings
from mamba_np.cli.session import Printer, Session


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("MAMBA_NP_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def ended(text):
    """A text as it is printed: it ends with a line break."""
    return text if text.endswith("\n") else text + "\n"


# --- generate: the prompt --------------------------------------------------------------------


def test_generate_prints_the_prompt_and_its_continuation(model, tokenizer):
    ids = tokenizer.encode(PROMPT)
    expected = model.generate(
        [ids], max_new_tokens=30, do_sample=True, temperature=0.7, top_p=0.9, seed=0
    )
    expected = tokenizer.decode(expected[0], skip_special_tokens=True)
    found = output_of("generate", PROMPT, "-n", 30)
    assert found == ended(expected)
    assert found.startswith(PROMPT)
    assert output_of("generate", PROMPT, "-n", 30, "--no-echo") == found.removeprefix(PROMPT)


def test_prompts_can_come_from_everywhere(tmp_path):
    expected = output_of("generate", PROMPT, "-n", 5)
    file = tmp_path / "prompt.txt"
    for ending in ("", "\n", "\r\n"):
        file.write_bytes((PROMPT + ending).encode())
        assert output_of("generate", "-f", file, "-n", 5) == expected
        assert output_of("generate", "-n", 5, stdin=PROMPT + ending) == expected
    assert output_of("generate", "-f", "-", "-n", 5, stdin=PROMPT) == expected
    assert output_of("generate", "-p", PROMPT, "-n", 5, stdin="not this") == expected
    assert output_of("generate", "-n", 1, stdin=PROMPT + "\n\n").startswith(PROMPT + "\n")


def test_an_empty_prompt_starts_from_bos(model):
    report = json_of("generate", "", "-n", 3)
    assert report["prompt_ids"] == [model.config.bos_token_id]
    assert len(report["ids"]) == 3
    assert output_of("generate", "-n", 3, stdin="") == ended(report["text"])


def test_one_prompt_is_needed(tmp_path, monkeypatch):
    assert error_of("generate", "a", "-p", "b", code=2) == (
        "Expected one prompt, found PROMPT and --prompt."
    )
    monkeypatch.setattr("mamba_np.cli.generate.stdin_is_piped", lambda: False)
    assert error_of("generate", code=2).startswith("No prompt: give PROMPT,")


def test_prompts_that_are_not_text_are_refused(tmp_path):
    file = tmp_path / "latin1.txt"
    file.write_bytes("café".encode("latin-1"))
    expected = "expected text in UTF-8, found byte 0xe9 at offset 3 (unexpected end of data)"
    assert error_of("generate", "-f", file) == f"{file}: {expected}"
    assert error_of("generate", stdin=b"caf\xe9") == f"stdin: {expected}"
    assert error_of("generate", "caf\udce9") == (
        "PROMPT: expected text in UTF-8, found other bytes at character 3"
    )
    assert "cannot be opened" in error_of("generate", "-f", tmp_path / "none")
    assert "expected a file, found a folder" in error_of("generate", "-f", tmp_path)
    assert error_of("generate", "a", "--stop", "caf\udce9").startswith(
        "--stop: expected text in UTF-8"
    )


# --- generate: the tokens --------------------------------------------------------------------


@pytest.mark.parametrize("case", ["0", "1"])
def test_greedy_tokens_are_those_of_the_reference(refs, tokenizer, case):
    prompt = refs("stories")[f"{case}.input_ids"].ravel().tolist()
    expected = refs("stories")[f"{case}.greedy40"].ravel().tolist()
    report = json_of("generate", tokenizer.decode(prompt), "--greedy", "--ignore-eos", "-n", 40)
    assert report["prompt_ids"] + report["ids"] == expected


NOTHING = dict.fromkeys((*PASSED_ON, "do_sample")) | {
    "max_new_tokens": 9,
    "stop": (),
    "ignore_eos": False,
}
BUNDLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 0}


@pytest.mark.parametrize(
    ("options", "is_bundled", "expected"),
    [
        ({}, False, {}),
        ({"seed": 3}, False, {"seed": 3, "do_sample": True}),
        ({"top_k": 5}, False, {"top_k": 5, "do_sample": True}),
        ({"repetition_penalty": 1.2}, False, {"repetition_penalty": 1.2}),
        ({"do_sample": True}, False, {"do_sample": True}),
        ({"do_sample": False}, False, {"do_sample": False}),
        ({"do_sample": False, "seed": 1}, False, {"do_sample": False, "seed": 1}),
        ({"temperature": 0.0, "top_k": 5}, False, {"do_sample": False}),
        ({"num_beams": 3}, False, {"num_beams": 3}),
        ({}, True, BUNDLED),
        ({"seed": 3}, True, BUNDLED | {"seed": 3}),
        ({"temperature": 1.5}, True, BUNDLED | {"temperature": 1.5}),
        ({"do_sample": False}, True, {"do_sample": False}),
        ({"temperature": 0.0}, True, {"do_sample": False}),
        ({"num_beams": 3}, True, {"num_beams": 3}),
        ({"stop": ("a", "b")}, False, {"stop_strings": ["a", "b"]}),
        ({"ignore_eos": True}, False, {"eos_token_id": None}),
    ],
)
def test_options_mean_these_settings(options, is_bundled, expected):
    found = generation_settings(NOTHING | options, is_bundled=is_bundled)
    assert found == expected | {"max_new_tokens": 9}


def test_greedy_contradicts_options_of_sampling():
    message = error_of("generate", PROMPT, "--greedy", "--top-p", "0.5", code=2)
    assert message == "--greedy takes the likeliest token; --top-p is for sampling."


def test_bad_values_are_errors_of_the_library():
    assert error_of("generate", PROMPT, "--top-p", 7).startswith("top_p: expected")
    assert error_of("generate", PROMPT, "--backend", "abacus").startswith("backend: expected")
    assert error_of("generate", PROMPT, "-n", "-1", code=2)


def test_seeds_repeat(model):
    first = output_of("generate", PROMPT, "-n", 20, "--seed", 1)
    assert first == output_of("generate", PROMPT, "-n", 20, "--seed", 1)
    assert first != output_of("generate", PROMPT, "-n", 20, "--seed", 2)


def test_stop_strings_end_the_text():
    report = json_of("generate", PROMPT, "-n", 100, "--stop", ".", "--greedy")
    assert report["finish_reason"] == "stop"
    assert report["text"].count(".") == 1
    assert len(report["ids"]) < 100


def test_several_texts(tokenizer):
    options = ["generate", PROMPT, "-n", 8, "--num-return-sequences", 3, "--seed", 5]
    report = json_of(*options)
    texts = [PROMPT + s["text"] for s in report["sequences"]]
    assert len(set(texts)) == 3
    assert output_of(*options) == ended("\n---\n".join(texts))
    assert report["text"] == report["sequences"][0]["text"]
    alone = json_of("generate", PROMPT, "-n", 8, "--seed", 5)
    assert alone["ids"] == report["ids"]
    assert "sequences" not in alone


def test_several_texts_end_each_at_its_own_place(tokenizer):
    options = ["--num-return-sequences", 4, "--seed", 1, "--stop", "the", "-n", 40]
    sequences = json_of("generate", PROMPT, *options)["sequences"]
    assert len({len(s["ids"]) for s in sequences}) > 1
    for sequence in sequences:
        stopped = "the" in sequence["text"]
        assert sequence["finish_reason"] == ("stop" if stopped else "length")
        assert len(sequence["ids"]) <= 40
        if stopped:  # nothing follows the token that ends it
            assert "the" not in tokenizer.decode(sequence["ids"][:-1])


def test_a_space_between_prompt_and_text_stays(model):
    # Decoders of this kind drop the space that begins a text.
    words = {"<unk>": 0, "▁a": 1, "▁king": 2}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    session = Session(model, Tokenizer(backend), "a")
    assert session.ids == [1]
    session.sequences = [[2, 1]]
    assert session.texts() == [" king a"]


def test_beams_find_what_the_library_finds(model, tokenizer):
    ids = tokenizer.encode(PROMPT)
    expected = model.generate([ids], max_new_tokens=12, num_beams=3)[0, len(ids) :].tolist()
    report = json_of("generate", PROMPT, "-n", 12, "--num-beams", 3)
    assert report["ids"] == expected
    timings = report["timings"]
    assert timings["prompt_seconds"] is timings["prompt_tokens_per_second"] is None
    assert timings["new_tokens_per_second"] == 12 / timings["new_seconds"]
    text = PROMPT + tokenizer.decode(expected)
    found = output_of("generate", PROMPT, "-n", 12, "--num-beams", 3)
    assert found == ended(text)


def test_an_end_of_text_is_neither_printed_nor_passed(tmp_path, model, tokenizer):
    # The first greedy token is declared the end of text.
    folder = tmp_path / "model"
    shutil.copytree(bundled_model_path(), folder)
    token = json_of("generate", PROMPT, "--greedy", "-n", 1)["ids"][0]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": token}))
    report = json_of("generate", PROMPT, "-m", folder, "-n", 7)
    assert (report["ids"], report["finish_reason"]) == ([token], "eos")
    report = json_of("generate", PROMPT, "-m", folder, "-n", 7, "--ignore-eos")
    assert (len(report["ids"]), report["finish_reason"]) == (7, "length")


@pytest.mark.parametrize("seed", range(3))
def test_streamed_text_is_the_decoded_text(seed):
    # So hot that most tokens are random bytes: characters come in pieces, and broken.
    options = ["generate", PROMPT, "-n", 60, "--temperature", 50, "--top-k", 0, "--seed", seed]
    options += ["--top-p", 1]
    text = PROMPT + json_of(*options)["text"]
    assert output_of(*options) == ended(text)


def test_stats_are_one_line_on_stderr():
    result = run("generate", PROMPT, "-n", 5, "--stats")
    assert result.exit_code == 0
    assert re.fullmatch(
        r"prompt: 4 tokens, [\d,.]+ tokens/s \| new: 5 tokens, [\d,.]+ tokens/s"
        r"( \| peak memory: [\d.]+ [MG]B)?\n",
        result.stderr,
    )
    assert result.stdout == output_of("generate", PROMPT, "-n", 5)


def test_json_has_text_ids_and_timings(tokenizer):
    report = json_of("generate", PROMPT, "-n", 6)
    assert report["model"] == str(bundled_model_path())
    assert report["prompt"] == PROMPT
    assert report["prompt_ids"] == tokenizer.encode(PROMPT)
    assert report["text"] == tokenizer.decode(report["ids"])
    assert report["finish_reason"] == "length"
    timings = report["timings"]
    assert (timings["prompt_tokens"], timings["new_tokens"]) == (4, 6)
    assert timings["prompt_seconds"] > 0
    assert timings["new_tokens_per_second"] == 5 / timings["new_seconds"]


def test_the_prompt_is_read_once_though_the_first_text_ends_at_once(model, tokenizer, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("mamba_np.cli.session.time.perf_counter", lambda: next(clock))

    class TwoTexts:
        def __init__(self):
            self.finish_reasons = ["", ""]

        def __iter__(self):
            for tokens in [(5, 6), (0, 7), (0, 8)]:
                self.finish_reasons = ["eos", ""]
                yield tokens

    monkeypatch.setattr(MambaForCausalLM, "stream", lambda *_, **__: TwoTexts())
    session = Session(model, tokenizer, PROMPT)
    session.run({"max_new_tokens": 3}, Printer(session.decoder(), None))
    assert session.sequences == [[5], [6, 7, 8]]
    timings = session.timings()
    assert (timings["prompt_seconds"], timings["new_seconds"]) == (1, 2)
    assert timings["new_tokens_per_second"] == 1  # two tokens after the first of each text


def test_interruption_is_reported_in_json(monkeypatch, model):
    calls = SimpleNamespace(count=0)
    forward = MambaForCausalLM.__call__

    def interrupted(self, *args, **kwargs):
        calls.count += 1
        if calls.count == 4:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(MambaForCausalLM, "__call__", interrupted)
    result = run("generate", PROMPT, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 130
    assert (report["finish_reason"], len(report["ids"])) == ("interrupted", 3)
