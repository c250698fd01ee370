"""Text to ids and back: AutoTokenizer, over the tokenizers package.

``files`` reads the files that come with a model, ``batch`` makes rows of ids into rectangles,
``stream`` decodes one token at a time, ``tokenizer`` puts them together.
"""

from .batch import BatchEncoding
from .files import TokenizerSettings
from .stream import StreamDecoder
from .tokenizer import AutoTokenizer, Tokenizer

__all__ = ["AutoTokenizer", "BatchEncoding", "StreamDecoder", "Tokenizer", "TokenizerSettings"]
