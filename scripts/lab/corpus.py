"""The King James text beside the small model, as long documents."""

from __future__ import annotations

from functools import cache

from lab.paths import TINY_KJV


@cache
def _books() -> dict[str, str]:
    books: dict[str, list[str]] = {}
    for line in (TINY_KJV / "corpus.txt").read_text().splitlines():
        books.setdefault(line.split(" ", 1)[0], []).append(line)
    return {name: "\n".join(lines) for name, lines in books.items()}


def book(name: str) -> str:
    """The text of one book, named as in the corpus: `Ge`, `Est`, `2Cor`."""
    return _books()[name]


def book_names() -> list[str]:
    return list(_books())


@cache
def corpus_ids() -> tuple[int, ...]:
    """The beginning of the corpus as token ids of the small model's tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINY_KJV / "tokenizer.json"))
    text = (TINY_KJV / "corpus.txt").read_text()[:1_200_000]
    return tuple(tokenizer.encode(text).ids)


def passage(number: int, tokens: int) -> list[int]:
    """Passage `number` of the corpus, exactly `tokens` long. Different numbers share no prefix."""
    ids = corpus_ids()
    start = (number * 3989) % (len(ids) - tokens)
    return list(ids[start : start + tokens])
