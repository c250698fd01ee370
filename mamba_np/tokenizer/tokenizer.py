"""Tokenizer: transformers' names and results, without transformers."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..checks import shown
from ..errors import InputError, TokenizerError
from ..files import make_folder, replacing, write_json
from ..hub import TOKENIZER_FILES, locate, split_hub_options
from . import batch
from .batch import BatchEncoding, check_ids
from .files import ROLES, SIDES, TokenizerSettings, read_tokenizer, refusing, tokenizer_json
from .special import SpecialToken, SpecialTokenId
from .stream import ByteStream, StreamDecoder, WindowStream

if TYPE_CHECKING:
    import tokenizers

ID_LIMIT = 2**32  # the tokenizers package keeps ids in 32 bits


class Tokenizer:
    """Turns text into token ids and back, as ``tokenizer.json`` says.

    ``backend_tokenizer`` is a ``tokenizers.Tokenizer``, which this object takes over. Special
    tokens that its vocabulary lacks are added to it, as transformers does.

    Several threads may use one tokenizer. The tokenizers package encodes a list of texts with
    threads of its own; a process that forks after that is warned by the package, and encodes with
    one thread in the child (its environment variable TOKENIZERS_PARALLELISM decides).
    """

    model_input_names = ("input_ids", "attention_mask")

    bos_token, bos_token_id = SpecialToken(), SpecialTokenId()
    eos_token, eos_token_id = SpecialToken(), SpecialTokenId()
    unk_token, unk_token_id = SpecialToken(), SpecialTokenId()
    pad_token, pad_token_id = SpecialToken(), SpecialTokenId()

    def __init__(
        self,
        backend_tokenizer: "tokenizers.Tokenizer",
        settings: TokenizerSettings | None = None,
    ):
        settings = settings or TokenizerSettings()
        self.backend_tokenizer = backend_tokenizer
        self.special_tokens_map = dict(settings.special)
        self.model_max_length = settings.model_max_length
        self.padding_side, self.truncation_side = settings.padding_side, settings.truncation_side
        self._extra, self._raw = settings.extra, settings.raw
        backend_tokenizer.no_padding()  # both are done per call here: threads would share these
        backend_tokenizer.no_truncation()
        added = {t.content for t in backend_tokenizer.get_added_tokens_decoder().values()}
        missing = [token for token in self.all_special_tokens if token not in added]
        with refusing("special tokens: expected some that the tokenizers package can add"):
            backend_tokenizer.add_special_tokens(missing)
        decoder = backend_tokenizer.get_added_tokens_decoder()
        self._special_ids = {i for i, token in decoder.items() if token.special}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        padding_side: str | None = None,
        **options: Any,
    ) -> "Tokenizer":
        """Load the tokenizer of a folder or a Hugging Face repository.

        ``options`` are ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and
        ``subfolder``. Without ``padding_side``, the files decide; the default is "right". The
        models of this package give every text the same result on either side.

        Raises FileMissingError without a tokenizer.json and TokenizerError for damaged files.
        """
        hub_options, unknown = split_hub_options(options)
        if unknown:
            raise TypeError(
                f"from_pretrained() got an unexpected keyword argument {next(iter(unknown))!r}"
            )
        if padding_side is not None and padding_side not in SIDES:
            raise InputError(
                f"padding_side: expected 'left' or 'right', found {shown(padding_side)}"
            )
        folder = locate(name_or_path, TOKENIZER_FILES, hub_options)
        settings = TokenizerSettings.read(folder)
        settings.padding_side = padding_side or settings.padding_side
        return cls(read_tokenizer(folder), settings)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the files that ``from_pretrained`` and transformers read; return their paths."""
        folder = make_folder(folder)
        paths = [folder / name for name in TOKENIZER_FILES]
        with replacing(paths[0]) as temporary:
            temporary.write_bytes(tokenizer_json(self.backend_tokenizer))
        kept = {name: value for name, value in self._raw.items() if name not in ROLES}
        chosen = {
            **self.special_tokens_map,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
        }
        write_json(paths[1], {"tokenizer_class": "PreTrainedTokenizerFast"} | kept | chosen)
        write_json(paths[2], self.special_tokens_map)  # an older one in its place would overrule
        return paths

    # --- text to ids --------------------------------------------------------------------------

    def __call__(
        self,
        text: str | list[str] | tuple[str, ...],
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        return_offsets_mapping: bool = False,
    ) -> BatchEncoding:
        """Return ``input_ids`` and ``attention_mask`` of one text or several.

        One text gives flat lists, several give lists of lists; with ``return_tensors="np"`` both
        give int64 arrays (B, L). ``padding`` is True or "longest", "max_length", or False;
        padded positions have ``pad_token_id`` and mask 0. ``truncation`` cuts to ``max_length``,
        or without it to ``model_max_length``; ``max_length`` alone cuts too.
        ``return_offsets_mapping`` adds ``offset_mapping``: where in its text each token starts
        and ends, in characters. Special tokens written out in a text become their ids.

        Raises InputError for what is no text, for unknown options, and for rows of different
        lengths with "np" and no padding; TokenizerError for padding without a pad token.
        """
        texts = batch.check_texts(text)
        max_length = batch.check_length(max_length)
        pad_to = batch.choose("padding", padding, batch.PADDING)
        if return_tensors not in (None, "np"):
            raise InputError(
                "return_tensors: expected 'np' (NumPy arrays) or None, "
                f"found {shown(return_tensors)}"
            )
        encodings = self._encode(texts, add_special_tokens)
        columns = {"input_ids": [encoding.ids for encoding in encodings]}
        if return_offsets_mapping:
            columns["offset_mapping"] = [encoding.offsets for encoding in encodings]
        limit = self._limit(pad_to, truncation, max_length)
        if limit is not None:
            columns = self._truncated(columns, encodings, limit)
        if return_attention_mask:
            columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
        if pad_to is not None:
            columns = self._pad(columns, pad_to, max_length)
        if return_tensors == "np":
            return BatchEncoding(batch.to_arrays(columns))
        single = isinstance(text, str)
        return BatchEncoding({k: rows[0] if single else rows for k, rows in columns.items()})

    def _encode(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        with refusing("text: expected one that this tokenizer can encode"):
            if len(texts) == 1:  # one text needs no threads
                return [
                    self.backend_tokenizer.encode(texts[0], add_special_tokens=add_special_tokens)
                ]
            return self.backend_tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)

    def _limit(self, padding: str | None, truncation: Any, max_length: int | None) -> int | None:
        """Return how many tokens a text may have; None: any number."""
        truncation = batch.choose("truncation", truncation, batch.TRUNCATION)
        if truncation is None:
            truncation = max_length is not None and padding is None
        if not truncation:
            return None
        return self.model_max_length if max_length is None else max_length

    def _truncated(self, columns: batch.Columns, encodings: list[Any], limit: int) -> batch.Columns:
        side = self._side("truncation_side")
        kept = [
            batch.kept_positions(encoding.special_tokens_mask, limit, side)
            for encoding in encodings
        ]
        return {
            name: [[row[i] for i in places] for row, places in zip(rows, kept, strict=True)]
            for name, rows in columns.items()
        }

    def _pad(self, columns: batch.Columns, padding: str, max_length: int | None) -> batch.Columns:
        if self.pad_token_id is None:
            raise TokenizerError(
                "padding: expected a tokenizer with a pad token, found none; set one first: "
                "tokenizer.pad_token = tokenizer.eos_token"
            )
        length = max(len(row) for row in columns["input_ids"])
        if padding == "max_length":
            length = self.model_max_length if max_length is None else max_length
            if max_length is None and length > batch.PADDING_LIMIT:
                raise InputError(
                    "padding='max_length': expected max_length, found None and a tokenizer "
                    f"without a limit (model_max_length is {length})"
                )
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0, "offset_mapping": (0, 0)}
        return batch.pad(columns, fills, length, self._side("padding_side"))

    def _side(self, name: str) -> str:
        side = getattr(self, name)
        if side not in SIDES:
            raise InputError(f"{name}: expected 'left' or 'right', found {shown(side)}")
        return side

    def encode(self, text: str, **options: Any) -> Any:
        """Return the ids of one text: a list, or an array (1, L) with ``return_tensors="np"``.

        Options and errors are those of calling the tokenizer.
        """
        if not isinstance(text, str):
            raise InputError(f"text: expected one string, found {type(text).__name__}")
        return self(text, **options)["input_ids"]

    def tokenize(self, text: str, **options: Any) -> list[str]:
        """Return the tokens of one text as the vocabulary spells them ("Ġ" is a space)."""
        ids = self.encode(text, **{"add_special_tokens": False, **options})
        return [str(token) for token in self.convert_ids_to_tokens(ids)]

    # --- ids to text --------------------------------------------------------------------------

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Return the text of an id, a list of ids or a 1-D array of them.

        Ids beyond the vocabulary give no text: models have a few rows more than their tokenizer
        has tokens. Bytes that are no UTF-8 give U+FFFD. ``clean_up_tokenization_spaces`` is
        accepted and without effect, as in transformers for such tokenizers: it would change text
        that was encoded exactly.

        Raises InputError for negative ids and for what is no integer.
        """
        ids = [i for i in check_ids(token_ids) if i < ID_LIMIT]
        return self._decode(ids, skip_special_tokens)

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        with refusing("ids: expected some that this tokenizer can decode"):
            return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """Return the text of each row of an array (B, L) or of a list of lists of ids.

        Options and errors are those of ``decode``.
        """
        rows = list(sequences) if isinstance(sequences, Iterable) else None
        if (
            rows is None
            or isinstance(sequences, str)
            or any(isinstance(r, int | np.integer) for r in rows)
        ):
            raise InputError(
                f"sequences: expected a list of lists of ids, found {shown(sequences)}; "
                "decode takes the ids of one text"
            )
        return [self.decode(row, **options) for row in rows]

    def stream_decoder(self, skip_special_tokens: bool = False) -> StreamDecoder:
        """Return an object that decodes one text token by token.

        Its ``put(id)`` returns the text that is complete with this token and ``flush()``, at the
        end, what is left. Together they return what ``decode`` returns for all ids; ids and
        errors are those of ``decode``. See ``stream`` for what "complete" means.
        """
        from tokenizers import decoders

        def token_of(token_id: int) -> str | None:
            skipped = skip_special_tokens and token_id in self._special_ids
            return (
                None
                if skipped or token_id >= ID_LIMIT
                else self.backend_tokenizer.id_to_token(token_id)
            )

        if isinstance(self.backend_tokenizer.decoder, decoders.ByteLevel):
            return ByteStream(token_of)
        return WindowStream(token_of, lambda ids: self._decode(ids, skip_special_tokens))

    # --- the vocabulary -----------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """The number of tokens without those added beside the vocabulary; see ``len``."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens that the files name, each once."""
        named = (self.special_tokens_map.get(role) for role in ROLES)
        return list(dict.fromkeys(t for t in [*named, *self._extra] if t is not None))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of ``all_special_tokens``."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[Any]: ...
    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or the ids of several; unknown tokens give the unk token's."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        token_id = self.backend_tokenizer.token_to_id(batch.check_texts(tokens)[0])
        return self.unk_token_id if token_id is None else token_id

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or the list of tokens of several; unknown ids give None."""
        if np.ndim(ids) == 0:
            return self._token(check_ids(ids)[0])
        special = self._special_ids if skip_special_tokens else ()
        return [self._token(i) for i in check_ids(ids) if i not in special]

    def _token(self, token_id: int) -> str | None:
        return self.backend_tokenizer.id_to_token(token_id) if token_id < ID_LIMIT else None

    def __repr__(self) -> str:
        special = "".join(f", {name}={token!r}" for name, token in self.special_tokens_map.items())
        return f"Tokenizer({len(self)} tokens{special}, padding_side={self.padding_side!r})"


class AutoTokenizer:
    """Door to Tokenizer."""

    @staticmethod
    def from_pretrained(
        name_or_path: str | os.PathLike[str], *, padding_side: str | None = None, **options: Any
    ) -> Tokenizer:
        """Return ``Tokenizer.from_pretrained(name_or_path, ...)``."""
        return Tokenizer.from_pretrained(name_or_path, padding_side=padding_side, **options)
