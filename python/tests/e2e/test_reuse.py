"""What one engine has computed, another need not compute again, and answers the same."""

from __future__ import annotations

from functools import partial

from lab.corpus import passage
from lab.testing import CHUNK_TOKENS, Expected, Lab, from_kvasir, requests, tokens, whole_chunks

WHOLE = passage(1, 2048)
WITH_TAIL = passage(2, 3000)
SHORT = passage(3, 700)
PROMPTS = [WHOLE, WITH_TAIL, SHORT]


def test_a_new_engine_answers_from_kvasir_what_another_had_computed(
    lab: Lab, expected: Expected
) -> None:
    kvasir = lab.daemon()
    first = lab.engine(kvasir, "first")
    cold = first.generate(requests(PROMPTS), together=False)
    assert tokens(cold) == [expected(prompt) for prompt in PROMPTS]
    assert first.external_tokens() == 0
    first.stop()

    second = lab.engine(kvasir, "second")
    for prompt in PROMPTS:
        result, reused = from_kvasir(second, partial(second.one, prompt))
        assert result.tokens == expected(prompt)
        assert whole_chunks(len(prompt)) - 1 <= reused <= whole_chunks(len(prompt))


def test_what_an_engine_had_saved_survives_its_kill(lab: Lab, expected: Expected) -> None:
    kvasir = lab.daemon()
    first = lab.engine(kvasir, "first")
    first.one(WITH_TAIL)
    # Another request's steps take the saves of the first one past any delay.
    first.one(SHORT)
    first.kill()
    second = lab.engine(kvasir, "second")
    result, reused = from_kvasir(second, lambda: second.one(WITH_TAIL))
    assert result.tokens == expected(WITH_TAIL)
    assert reused == whole_chunks(len(WITH_TAIL))


def test_two_engines_share_one_store_and_build_on_each_other(lab: Lab, expected: Expected) -> None:
    kvasir = lab.daemon()
    left, right = lab.engine(kvasir, "left"), lab.engine(kvasir, "right")

    # A chat whose turns go to one engine, then to the other. Answers are saved too.
    chat = passage(4, 1500)
    for turn in range(4):
        engine = (left, right)[turn % 2]
        result, reused = from_kvasir(engine, partial(engine.one, chat, max_tokens=300))
        assert result.tokens == expected(chat, 300)
        if turn > 0:
            # All of the turn before, its answer included, but for the last chunk or so.
            assert reused + engine_own(result.cached, reused) >= len(chat) - 200 - 2 * CHUNK_TOKENS
            assert reused > 0
        chat = [*chat, *result.tokens, *passage(50 + turn, 200)]

    # Both compute the same prompts at the same moment: each may save, none may spoil the other's.
    prompts = [passage(number, 2000) for number in range(5, 9)]
    for engine in (left, right):
        engine.send_generate(requests(prompts))
    for engine in (left, right):
        assert tokens(engine.receive_results()) == [expected(prompt) for prompt in prompts]
    for engine in (left, right):
        engine.forget()
        results, reused = from_kvasir(engine, partial(engine.generate, requests(prompts)))
        assert tokens(results) == [expected(prompt) for prompt in prompts]
        assert reused == sum(whole_chunks(len(prompt)) for prompt in prompts)


def engine_own(cached: int | None, reused: int) -> int:
    """Tokens from vLLM's own prefix cache: what was not computed and did not come from Kvasir."""
    return max((cached or 0) - reused, 0)


def test_a_load_starts_inside_a_chunk_where_the_engine_holds_the_beginning(
    lab: Lab, expected: Expected
) -> None:
    kvasir = lab.daemon()
    first = lab.engine(kvasir, "first")
    first.one(WHOLE)
    first.stop()

    second = lab.engine(kvasir, "second", engine={"block_size": 128})
    second.one(WHOLE[:700])
    # Its own cache now holds 640 tokens, five blocks: two and a half chunks.
    result, reused = from_kvasir(second, lambda: second.one(WHOLE))
    assert result.tokens == expected(WHOLE)
    assert len(WHOLE) - 640 - 1 <= reused <= len(WHOLE) - 640


def test_another_salt_finds_nothing_and_the_same_salt_finds_its_own(
    lab: Lab, expected: Expected
) -> None:
    kvasir = lab.daemon()
    engine = lab.engine(kvasir)
    engine.one(WHOLE, cache_salt="alice")
    for salt, found in ((None, 0), ("bob", 0), ("alice", len(WHOLE))):
        engine.forget()
        result, reused = from_kvasir(engine, partial(engine.one, WHOLE, cache_salt=salt))
        assert result.tokens == expected(WHOLE)
        assert found - 1 <= reused <= found, f"salt {salt}"


def test_another_model_finds_nothing(lab: Lab) -> None:
    from lab.models import random_llama

    kvasir = lab.daemon()
    prompt = passage(9, 1024)
    answers = []
    for seed in (1, 2):
        # The same shape, other weights: what tells them apart are the weights alone.
        engine = lab.engine(kvasir, f"seed-{seed}", model=random_llama(f"seed-{seed}", seed=seed))
        result, reused = from_kvasir(engine, partial(engine.one, prompt))
        assert reused == 0
        answers.append(result.tokens)
        engine.stop()
    assert answers[0] != answers[1]
