"""A tokenizer trained on the captions of a data set, in a stock class of transformers."""

from __future__ import annotations

import json
from typing import Any

from hfgen.errors import HfgenError, one_of


def train_tokenizer(
    texts: list[str], type: str = "CLIPTokenizer", vocab_size: int = 1000, max_length: int = 32
) -> Any:
    """A fast tokenizer that knows the words of ``texts``.

    Args:
        texts: captions.
        type: ``CLIPTokenizer``, byte-pair encoding in lower case, which can spell any word; or
            ``PreTrainedTokenizerFast``, whole words in lower case and one token for all others.
        vocab_size: tokens at most; byte-pair encoding needs 600.
        max_length: tokens that every text is padded or cut to, start and end included.
    Raises:
        HfgenError: an unknown type, too small a vocabulary or length.
    """
    if type not in TRAINED:
        raise one_of("model.tokenizer.type", type, list(TRAINED))
    if max_length < 3:
        raise HfgenError(f"model.tokenizer.max_length: must be at least 3, got {max_length}")
    tokenizer = TRAINED[type](texts, vocab_size)
    tokenizer.model_max_length = max_length
    return tokenizer


def _train_bpe(texts: list[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    if vocab_size < 600:
        raise HfgenError(
            f"model.tokenizer.vocab_size: {vocab_size} leaves no room beside the bytes; valid: "
            "from 600"
        )
    empty = CLIPTokenizer()
    end: dict[str, Any] = {"end_of_word_suffix": "</w>"}
    pairs: Any = Tokenizer(models.BPE(continuing_subword_prefix="", **end))
    pairs.normalizer = empty.backend_tokenizer.normalizer
    pairs.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The trainer numbers letters in the order of a hash table, and breaks ties between pairs by
    # number; named beforehand they make the same tokenizer each time.
    first = [empty.bos_token, empty.eos_token, *letters, *(letter + "</w>" for letter in letters)]
    trainer: Any = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=first, show_progress=False, **end
    )
    pairs.train_from_iterator(texts, trainer)
    model = json.loads(pairs.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges)


def _train_words(texts: list[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if vocab_size <= len(special):
        raise HfgenError(f"model.tokenizer.vocab_size: {vocab_size}; must be above {len(special)}")
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))  # type: ignore[call-arg]
    words.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])  # type: ignore[misc]
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[misc]
    trainer: Any = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(special.values()), show_progress=False
    )
    words.train_from_iterator(texts, trainer)
    ends = [(token, words.token_to_id(token)) for token in ("<s>", "</s>")]
    words.post_processor = processors.TemplateProcessing(  # type: ignore[misc]
        single="<s> $A </s>", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


TRAINED = {"CLIPTokenizer": _train_bpe, "PreTrainedTokenizerFast": _train_words}
"""Classes of transformers whose tokenizers are trained here."""
