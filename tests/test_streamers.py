"""Text while it is generated: to a file, to another thread, and when something goes wrong."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_np import AutoTokenizer, TextIteratorStreamer, TextStreamer
from mamba_np.errors import InputError

EOT = "<|endoftext|>"
TOKENIZER = AutoTokenizer.from_pretrained(
    Path(__file__).parent / "fixtures" / "models" / "base_silu"
)

ids_of_text = st.lists(st.integers(0, 330), max_size=30)


def generate(streamer, prompt, new):
    """Call a streamer as ``generate`` does."""
    streamer.put(np.array([prompt], np.int64))
    for token in new:
        streamer.put(np.array([token]))
    streamer.end()


def written(prompt, new, **options):
    file = io.StringIO()
    generate(TextStreamer(TOKENIZER, file=file, **options), prompt, new)
    return file.getvalue()


class Recorder(io.StringIO):
    """A file that remembers what had been written at each flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        self.flushed.append(self.getvalue())


# --- to a file -----------------------------------------------------------------------------------


@given(prompt=ids_of_text, new=ids_of_text, skip=st.booleans())
def test_what_is_written_is_what_decode_returns(prompt, new, skip):
    options = {"skip_special_tokens": skip}
    assert written(prompt, new, **options) == TOKENIZER.decode(prompt + new, **options) + "\n"
    assert written(prompt, new, skip_prompt=True, **options) == (
        TOKENIZER.decode(new, **options) + "\n"
    )


def test_same_text_as_the_streamer_of_transformers(capsys):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = Path(__file__).parent / "fixtures" / "models" / "base_silu"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    prompt, new = TOKENIZER.encode("state 맘바 "), TOKENIZER.encode(f"a 🐍\nb{EOT}")
    for options in ({}, {"skip_prompt": True}, {"skip_special_tokens": True}):
        streamer = transformers.TextStreamer(theirs, **options)
        streamer.put(torch.tensor([prompt]))
        for token in new:
            streamer.put(torch.tensor([token]))
        streamer.end()
        assert capsys.readouterr().out == written(prompt, new, **options)


def test_text_is_flushed_as_soon_as_a_character_is_complete():
    file = Recorder()
    streamer = TextStreamer(TOKENIZER, file=file)
    streamer.put(np.array([65]))
    for token in TOKENIZER.encode("맘b"):
        streamer.put(np.array([token]))
    assert file.flushed == ["a", "a맘", "a맘b"]
    streamer.end()
    assert file.flushed[-1] == "a맘b\n"


def test_an_unfinished_character_is_shown_at_the_end():
    assert written([65], TOKENIZER.encode("맘")[:2]) == "a\ufffd\n"


def test_a_streamer_serves_again():
    file = io.StringIO()
    streamer = TextStreamer(TOKENIZER, skip_prompt=True, file=file)
    for _ in range(2):
        generate(streamer, [65, 66], [67, 168])
    assert file.getvalue() == "c\ufffd\n" * 2


def test_standard_output_is_the_one_of_the_moment(capsys):
    streamer = TextStreamer(TOKENIZER)
    with pytest.MonkeyPatch.context() as patch:
        elsewhere = io.StringIO()
        patch.setattr("sys.stdout", elsewhere)
        streamer.put([[65]])
    generate(streamer, [66], [])
    assert elsewhere.getvalue() == "a"
    assert capsys.readouterr().out == "b\n"


def test_every_form_of_ids():
    file = io.StringIO()
    streamer = TextStreamer(TOKENIZER, file=file)
    for ids in ([65], [[65, 66]], np.array([[65]]), np.array(65), 65, np.array([], np.int64)):
        streamer.put(ids)
    assert file.getvalue() == "aabaaa"


def test_a_file_that_lacks_characters_gets_question_marks():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", newline="")
    generate(TextStreamer(TOKENIZER, file=file), TOKENIZER.encode("a맘b"), [])
    assert raw.getvalue() == b"a?b\n"


def test_a_subclass_gets_the_text():
    pieces = []

    class Collector(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            pieces.append((text, stream_end))

    generate(Collector(TOKENIZER), [65], TOKENIZER.encode("맘"))
    assert pieces == [("a", False), ("맘", False), ("", True)]


@pytest.mark.parametrize("kind", [TextStreamer, TextIteratorStreamer])
@pytest.mark.parametrize("skip_prompt", [False, True])
def test_several_texts_are_refused(kind, skip_prompt):
    streamer = kind(TOKENIZER, skip_prompt)
    for ids in ([[65], [66]], [[65], [66, 67]], np.zeros((2, 0), int), np.zeros((1, 1, 1), int)):
        with pytest.raises(InputError, match=f"{kind.__name__}: expected the ids of one text"):
            streamer.put(ids)


@pytest.mark.parametrize("ids", [[-1], [0.5], ["a"], None])
def test_what_are_no_ids_is_refused(ids):
    with pytest.raises(InputError, match="ids: expected"):
        TextStreamer(TOKENIZER, file=io.StringIO()).put(ids)


def test_unknown_options_are_type_errors():
    with pytest.raises(TypeError, match="skip_special"):
        TextStreamer(TOKENIZER, skip_special=True)


# --- to another thread ---------------------------------------------------------------------------


def in_thread(target, *args):
    thread = threading.Thread(target=target, args=args)
    thread.start()
    return thread


@given(prompt=ids_of_text, new=ids_of_text)
def test_iterating_gives_the_whole_text(prompt, new):
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)
    thread = in_thread(generate, streamer, prompt, new)
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == TOKENIZER.decode(prompt + new)
    assert "" not in pieces
    assert list(streamer) == []  # it stays ended


def test_pieces_come_while_the_other_thread_goes_on():
    streamer = TextIteratorStreamer(TOKENIZER, skip_prompt=True, timeout=60)
    heard = [threading.Event() for _ in range(3)]

    def work():
        streamer.put([[0]])
        for number, token in enumerate([65, 66, 67]):
            streamer.put([token])
            assert heard[number].wait(60)
        streamer.end()

    thread = in_thread(work)
    for number, piece in enumerate(streamer):
        assert piece == "abc"[number]
        heard[number].set()
    thread.join()
    assert all(event.is_set() for event in heard)


def test_special_tokens_are_skipped_on_demand():
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60, skip_special_tokens=True)
    generate(streamer, [0, 65], [0, 66, 0])
    assert list(streamer) == ["a", "b"]


def test_an_error_reaches_the_iterating_thread():
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)
    problem = MemoryError("no room")

    def work():
        streamer.put([65])
        streamer.fail(problem)
        streamer.end()  # as a finally clause does: without effect

    thread = in_thread(work)
    assert next(streamer) == "a"
    with pytest.raises(MemoryError) as caught:
        next(streamer)
    thread.join()
    assert caught.value is problem
    assert list(streamer) == []


def test_the_first_ending_counts():
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)
    generate(streamer, [65], [66])
    streamer.fail(ValueError("late"))
    streamer.end()
    assert list(streamer) == ["a", "b"]


def test_one_iterator_serves_one_text():
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)
    generate(streamer, [65], [66])
    with pytest.raises(InputError, match="expected a new streamer for a new text"):
        streamer.put([[65]])


def test_silence_ends_after_the_timeout():
    streamer = TextIteratorStreamer(TOKENIZER, timeout=0.05)
    with pytest.raises(TimeoutError, match=r"expected text within 0\.05 seconds, found none"):
        next(streamer)
    streamer.put([65])  # waiting again is possible
    assert next(streamer) == "a"
