"""What the demo asks: questions on long documents and a chat of several turns, in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from lab.corpus import book
from lab.openai_client import Answer, ask

DOCUMENTS = {
    "Esther": (
        "Est",
        ["Who was Mordecai?", "What did Haman build?", "Why do the Jews keep Purim?"],
    ),
    "Ecclesiastes": (
        "Eccl",
        ["What is vanity?", "Is there a time for all?", "What is the end of it?"],
    ),
    "2 Corinthians": (
        "2Cor",
        ["Who wrote this letter?", "What is the thorn?", "Whom does God love?"],
    ),
}
CHAT_ABOUT = ("Ruth", "Ruth")
CHAT_TURNS = [
    "Who is Naomi?",
    "Where did she go?",
    "Who is Boaz?",
    "And who was Obed's son?",
]
MAX_TOKENS = 32


@dataclass(frozen=True)
class Request:
    """One request: what to call it, and how to send it to a server."""

    label: str
    #: The chat turns before this one, whose answers belong into this one's prompt.
    history: tuple[str, ...]
    send: Callable[[str, list[str]], Answer]


def _question(title: str, text: str, question: str) -> Request:
    prompt = f"The book of {title}:\n{text}\n\nQuestion: {question}\nAnswer:"
    return Request(
        f"{title}: {question}",
        (),
        lambda url, _: ask(url, prompt=prompt, max_tokens=MAX_TOKENS),
    )


def _turn(number: int) -> Request:
    title, name = CHAT_ABOUT
    labels = [f"Chat on {title} {n}: {turn}" for n, turn in enumerate(CHAT_TURNS, start=1)]

    def send(url: str, answers: list[str]) -> Answer:
        messages = [{"role": "system", "content": f"We talk about this text.\n{book(name)}"}]
        for asked, answered in zip(CHAT_TURNS, answers, strict=False):
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answered})
        messages.append({"role": "user", "content": CHAT_TURNS[number]})
        return ask(url, messages=messages, max_tokens=MAX_TOKENS)

    return Request(labels[number], tuple(labels[:number]), send)


def requests() -> list[Request]:
    """All requests, the users taking turns: each comes back only after all the others."""
    users = [[_turn(number) for number in range(len(CHAT_TURNS))]]
    users += [
        [_question(title, book(name), question) for question in questions]
        for title, (name, questions) in DOCUMENTS.items()
    ]
    rounds = max(len(user) for user in users)
    return [user[n] for n in range(rounds) for user in users if n < len(user)]
