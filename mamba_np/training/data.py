"""Training data: examples become token ids, and ids become batches.

    data = load_data("quotes.jsonl", tokenizer, DataOptions(max_length=512, packing=True))
    for batch in batches(data, epoch_order(len(data), seed=42, epoch=0), size=8):
        ...

An epoch's order follows from the seed and the number of the epoch alone, so that a run goes on
anywhere in it without a generator to keep.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import SIZE_LIMIT, flag, integer, shown
from ..errors import InputError
from ..reference import IGNORED_LABEL
from .sources import EXPECTED, TEXT, Example, find_file, read_examples, read_text

Batch = dict[str, NDArray]

MAX_LENGTH = 1024
"""Tokens of a row unless told otherwise, as in TRL."""

CHUNK = 1000
"""Examples that are tokenised at a time: the tokenizers package does them side by side."""


class Row(NamedTuple):
    """One sequence to train on: ids and labels, both (L,), int32 and int64.

    A label is the id itself, or -100 where nothing is to be predicted.
    """

    ids: NDArray
    labels: NDArray


@dataclass(frozen=True)
class DataOptions:
    """How examples become rows.

    Rows have at most ``max_length`` tokens (None: any number). ``packing`` joins all examples,
    with the eos token between them, and cuts them into rows of that length; otherwise each example
    is a row, cut where it is too long. ``text_field`` is the key of the text.
    ``completion_only_loss`` predicts completions and not prompts, which ids have a
    ``completion_mask`` for; None: where there are prompts. ``formatting_func`` makes the text of an
    example from all of it. Raises InputError for values that cannot be used.
    """

    max_length: int | None = MAX_LENGTH
    packing: bool = False
    text_field: str = "text"
    completion_only_loss: bool | None = None
    formatting_func: Callable[[dict[str, Any]], str] | None = None

    def __post_init__(self) -> None:
        flag("packing", self.packing, error=InputError)
        if self.max_length is not None:
            integer("max_length", self.max_length, low=2, error=InputError)
        elif self.packing:
            raise InputError("max_length: expected an integer for packing, found None")
        if self.completion_only_loss is not None:
            flag("completion_only_loss", self.completion_only_loss, error=InputError)
        if self.formatting_func is not None and not callable(self.formatting_func):
            raise InputError(
                "formatting_func: expected a function from an example to a text, "
                f"found {shown(self.formatting_func)}"
            )
        if self.completion_only_loss and self.formatting_func is not None:
            raise InputError(
                "completion_only_loss: expected false with formatting_func, which makes one text "
                "of prompt and completion, found true"
            )


# --- from examples to rows ---------------------------------------------------------------------


def load_data(
    source: Any,
    tokenizer: Any,
    options: DataOptions | None = None,
    *,
    name: str = "train_dataset",
    split: str = "train",
) -> list[Row]:
    """Return the rows of a source: a path (see ``sources.find_file``) or an iterable of dicts.

    An example's text gets the eos token at its end, if the tokenizer has one. A text file is one
    stream: it is cut into rows of ``max_length`` with no token in between. ``tokenizer`` may be
    None where all examples have ``input_ids``. ``name`` is the argument that errors speak of.
    Rows in which nothing can be predicted are left out, with a warning unless they are what is
    left over of a packed whole. Raises InputError naming the place of what cannot be used, and if
    no row is left.
    """
    options = options or DataOptions()
    path = find_file(source, split) if isinstance(source, (str, os.PathLike)) else None
    if path is not None and path.suffix == TEXT:
        for option in ("completion_only_loss", "formatting_func"):
            if getattr(options, option):
                raise InputError(f"{option}: expected data of examples, found the text {path}")
        rows = _stream_rows(read_text(path), _needed(tokenizer, str(path)), options)
        packed = True
    else:
        examples = read_examples(source, name, split)
        rows, packed = list(_tokenised(examples, tokenizer, options)), options.packing
        rows = _packed(rows, tokenizer, options) if packed else _cut(rows, options.max_length)
    return _useful(rows, name if path is None else str(path), warn=not packed)


def _needed(tokenizer: Any, where: str) -> Any:
    if tokenizer is None:
        raise InputError(
            f"processing_class: expected a tokenizer for the text of {where}, found None"
        )
    return tokenizer


def _stream_rows(texts: Iterable[str], tokenizer: Any, options: DataOptions) -> list[Row]:
    pieces = [
        np.asarray(tokenizer(t, add_special_tokens=False)["input_ids"], np.int32) for t in texts
    ]
    ids = np.concatenate([np.empty(0, np.int32), *pieces])
    return blocks(Row(ids, ids.astype(np.int64)), options.max_length or max(len(ids), 1))


def _useful(rows: list[Row], name: str, *, warn: bool) -> list[Row]:
    kept = [row for row in rows if (row.labels[1:] != IGNORED_LABEL).any()]
    if not kept:
        raise InputError(f"{name}: expected tokens to predict, found none in {len(rows)} rows")
    if warn and len(kept) < len(rows):
        warnings.warn(
            f"{name}: {len(rows) - len(kept)} of {len(rows)} rows have no token to predict and are "
            "left out",
            stacklevel=3,
        )
    return kept


class _Piece(NamedTuple):
    """What an example says: a text whose first ``prompt`` characters are not predicted, or ids."""

    where: str
    text: str = ""
    prompt: int = 0
    row: Row | None = None


def _tokenised(examples: Iterable[Example], tokenizer: Any, options: DataOptions) -> Iterator[Row]:
    pieces = (_piece(where, example, options) for where, example in examples)
    while chunk := list(islice(pieces, CHUNK)):
        texts = [piece for piece in chunk if piece.row is None]
        rows = iter(_rows_of_texts(texts, tokenizer))
        yield from (next(rows) if piece.row is None else piece.row for piece in chunk)


def _piece(where: str, example: dict[str, Any], options: DataOptions) -> _Piece:
    """Return what one example says; raises InputError naming its place."""
    if options.formatting_func is not None:
        return _Piece(where, _text(where, "formatting_func", options.formatting_func(example)))
    if "input_ids" in example:
        whole = options.completion_only_loss is False
        return _Piece(where, row=given_row(where, example, whole=whole))
    if "prompt" in example and "completion" in example:
        prompt, completion = (_text(where, k, example[k]) for k in ("prompt", "completion"))
        ignored = len(prompt) if options.completion_only_loss is not False else 0
        return _Piece(where, prompt + completion, ignored)
    if options.text_field in example:
        if options.completion_only_loss:
            raise InputError(
                f"{where}: expected prompt and completion for completion_only_loss, found a text"
            )
        return _Piece(where, _text(where, options.text_field, example[options.text_field]))
    if "messages" in example:
        raise InputError(
            f"{where}: expected text, found messages: base checkpoints have no chat template; "
            "make texts of them with formatting_func"
        )
    raise InputError(f"{where}: {EXPECTED}, found the keys {shown(', '.join(map(str, example)))}")


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {key}: expected a string, found {shown(value)}")
    return value


def given_row(where: str, example: dict[str, Any], *, whole: bool = False) -> Row:
    """Return the row of ids that somebody else has made; masked ones are absent.

    A prompt, where ``completion_mask`` is 0, is not predicted, unless the ``whole`` is to be.
    """
    ids = _integers(where, "input_ids", example["input_ids"], 0)
    given = example.get("labels")
    labels = ids if given is None else _integers(where, "labels", given, IGNORED_LABEL)
    mask = example.get("attention_mask")
    kept = np.ones_like(ids) if mask is None else _integers(where, "attention_mask", mask, 0)
    mask = None if whole else example.get("completion_mask")
    own = np.ones_like(ids) if mask is None else _integers(where, "completion_mask", mask, 0)
    for key, array in (("labels", labels), ("attention_mask", kept), ("completion_mask", own)):
        if len(array) != len(ids):
            raise InputError(
                f"{where}: {key}: expected as many as input_ids, {len(ids)}, found {len(array)}"
            )
    labels = np.where(own != 0, labels, IGNORED_LABEL)
    return Row(ids[kept != 0].astype(np.int32), labels[kept != 0])


def _integers(where: str, key: str, value: Any, low: int) -> NDArray:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of several lengths
        array = np.empty((0, 0))
    if array.ndim == 1 and not array.size:
        return np.empty(0, np.int64)
    fits = array.ndim == 1 and array.dtype.kind in "iu"
    if not fits or array.min() < low or array.max() > SIZE_LIMIT:
        raise InputError(
            f"{where}: {key}: expected a list of integers of at least {low}, found {shown(value)}"
        )
    return array.astype(np.int64)


def _rows_of_texts(pieces: list[_Piece], tokenizer: Any) -> Iterator[Row]:
    if not pieces:
        return
    tokenizer = _needed(tokenizer, pieces[0].where)
    encoded = tokenizer([piece.text for piece in pieces], return_offsets_mapping=True)
    eos = tokenizer.eos_token_id
    columns = (pieces, encoded["input_ids"], encoded["offset_mapping"])
    for piece, ids, offsets in zip(*columns, strict=True):
        row = np.asarray(ids, np.int32)
        labels = row.astype(np.int64)
        if piece.prompt:  # a token that reaches into the completion belongs to it
            ends = np.asarray(offsets, np.int64).reshape(-1, 2)[:, 1]
            labels[ends <= piece.prompt] = IGNORED_LABEL
        if eos is not None:
            row, labels = _ended(Row(row, labels), eos)
            labels[-1] = eos  # also of one that the tokenizer itself has added
        yield Row(row, labels)


def _ended(row: Row, eos: int) -> Row:
    """Return a row that ends with the eos token; a new one is to be predicted."""
    if len(row.ids) and row.ids[-1] == eos:
        return row
    return Row(np.append(row.ids, np.int32(eos)), np.append(row.labels, np.int64(eos)))


# --- length ------------------------------------------------------------------------------------


def _cut(rows: list[Row], length: int | None) -> list[Row]:
    return [Row(row.ids[:length], row.labels[:length]) for row in rows]


def _packed(rows: list[Row], tokenizer: Any, options: DataOptions) -> list[Row]:
    eos = None if tokenizer is None else tokenizer.eos_token_id
    if eos is None:
        raise InputError(
            "packing: expected a tokenizer with an eos token to stand between examples, found "
            f"{'none' if tokenizer is None else 'one without'}"
        )
    return pack(rows, options.max_length or 2, eos)


def pack(rows: Sequence[Row], length: int, separator: int) -> list[Row]:
    """Join all rows and cut them into rows of ``length`` tokens; the last one may be shorter.

    After each row that does not end with it stands the separator, which is to be predicted. Every
    token of every row is kept, in its order.
    """
    whole = [_ended(row, separator) for row in rows if len(row.ids)]
    ids = np.concatenate([np.empty(0, np.int32), *(row.ids for row in whole)])
    labels = np.concatenate([np.empty(0, np.int64), *(row.labels for row in whole)])
    return blocks(Row(ids, labels), length)


def blocks(row: Row, length: int) -> list[Row]:
    """Cut one long row into rows of ``length`` tokens; the last one may be shorter."""
    starts = range(0, len(row.ids), length)
    return [Row(row.ids[i : i + length], row.labels[i : i + length]) for i in starts]


# --- batches -----------------------------------------------------------------------------------


def epoch_order(count: int, seed: int, epoch: int) -> NDArray:
    """Return the order (``count``,) in which an epoch visits the rows.

    It follows from the arguments alone. Raises InputError for negative ones.
    """
    pair = [integer(n, v, low=0, error=InputError) for n, v in (("seed", seed), ("epoch", epoch))]
    return np.random.default_rng(pair).permutation(count)


def batches(
    rows: Sequence[Row],
    order: Sequence[int] | NDArray,
    size: int,
    *,
    start: int = 0,
    pad_token_id: int = 0,
) -> Iterator[Batch]:
    """Yield batches of ``size`` rows in an order, from its place ``start`` on; the last is smaller.

    Raises InputError as ``collate`` does.
    """
    for i in range(start, len(order), size):
        yield collate([rows[j] for j in order[i : i + size]], pad_token_id)


def collate(rows: Sequence[Row], pad_token_id: int = 0) -> Batch:
    """Return rows as a batch: ``input_ids``, ``labels`` and ``attention_mask``, each (B, L).

    Shorter rows are filled at their right, with label -100 and mask 0; where nothing is filled
    there is no mask. Raises InputError for no rows.
    """
    if not len(rows):
        raise InputError("rows: expected at least one, found none")
    lengths = np.array([len(row.ids) for row in rows])
    shape = len(rows), int(lengths.max())
    ids = np.full(shape, pad_token_id, np.int64)
    labels = np.full(shape, IGNORED_LABEL, np.int64)
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]], labels[i, : lengths[i]] = row
    batch = {"input_ids": ids, "labels": labels}
    return batch if mask.all() else batch | {"attention_mask": mask}
