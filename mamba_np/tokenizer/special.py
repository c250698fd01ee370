"""Special tokens as attributes that can be set: ``tokenizer.pad_token = tokenizer.eos_token``."""

from typing import TYPE_CHECKING

from ..checks import shown
from ..errors import InputError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class SpecialToken:
    """A special token by its role, as text; it can be set to another token of the vocabulary."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name

    def __get__(self, tokenizer: "Tokenizer", owner: type | None = None) -> str | None:
        return self if tokenizer is None else tokenizer.special_tokens_map.get(self.role)

    def __set__(self, tokenizer: "Tokenizer", token: str | None) -> None:
        if token is None:
            tokenizer.special_tokens_map.pop(self.role, None)
        elif not isinstance(token, str) or tokenizer.backend_tokenizer.token_to_id(token) is None:
            raise InputError(
                f"{self.role}: expected a token of the vocabulary, found {shown(token)}"
            )
        else:
            tokenizer.special_tokens_map[self.role] = token


class SpecialTokenId:
    """The id of a special token; setting it sets the token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.role = name, name.removesuffix("_id")

    def __get__(self, tokenizer: "Tokenizer", owner: type | None = None) -> int | None:
        if tokenizer is None:
            return self
        token = tokenizer.special_tokens_map.get(self.role)
        return None if token is None else tokenizer.backend_tokenizer.token_to_id(token)

    def __set__(self, tokenizer: "Tokenizer", token_id: int | None) -> None:
        token = None if token_id is None else tokenizer.convert_ids_to_tokens(token_id)
        if token_id is not None and not isinstance(token, str):
            raise InputError(
                f"{self.name}: expected an id of the vocabulary, found {shown(token_id)}"
            )
        setattr(tokenizer, self.role, token)
