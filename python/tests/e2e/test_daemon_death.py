"""A daemon that dies costs time and one warning, never an answer; caching resumes by itself."""

from __future__ import annotations

import signal
import threading

from lab.corpus import passage
from lab.engine import Engine
from lab.processes import Kvasir
from lab.testing import Expected, Lab, from_kvasir, requests, tokens, wait_for, whole_chunks

PROMPTS = [passage(number, 2048) for number in range(60, 66)]


def warnings(engine: Engine) -> list[str]:
    """The lines in which the engine warned of Kvasir."""
    return [
        line
        for line in engine.output().splitlines()
        if "WARNING" in line and "kvasir" in line.lower()
    ]


def kill_soon(kvasir: Kvasir, after_s: float) -> threading.Timer:
    """Kills the daemon after a while; join the timer to know that it is gone."""
    timer = threading.Timer(after_s, kvasir.kill)
    timer.start()
    return timer


def wait_until_caching(engine: Engine, first_number: int, expected: Expected) -> None:
    """Asks new prompts until one comes back from Kvasir."""
    number = first_number

    def comes_back() -> bool:
        nonlocal number
        number += 1
        prompt = passage(number, 1024)
        assert engine.one(prompt).tokens == expected(prompt)
        engine.forget()
        result, reused = from_kvasir(engine, lambda: engine.one(prompt))
        assert result.tokens == expected(prompt)
        return bool(reused == whole_chunks(len(prompt)))

    wait_for(comes_back, "caching has resumed", 60)


def test_a_daemon_killed_while_it_saves_and_loads(lab: Lab, expected: Expected) -> None:
    wanted = [expected(prompt) for prompt in PROMPTS]
    kvasir = lab.daemon()
    engine = lab.engine(kvasir)
    assert tokens(engine.generate(requests(PROMPTS[:2]))) == wanted[:2]

    # In the middle of saves.
    engine.forget()
    engine.send_generate(requests(PROMPTS), together=False)
    killer = kill_soon(kvasir, 0.7)
    assert tokens(engine.receive_results()) == wanted
    killer.join()
    assert len(warnings(engine)) == 1, warnings(engine)

    kvasir = lab.restart(kvasir)
    wait_until_caching(engine, 100, expected)
    before = len(warnings(engine))
    engine.forget()
    assert tokens(engine.generate(requests(PROMPTS))) == wanted

    # In the middle of loads: a daemon that has stopped answering, then is gone.
    engine.forget()
    kvasir.popen.send_signal(signal.SIGSTOP)
    engine.send_generate(requests(PROMPTS))
    killer = kill_soon(kvasir, 0.3)
    assert tokens(engine.receive_results()) == wanted
    killer.join()
    # A daemon that comes and goes is warned of once a minute.
    assert before <= len(warnings(engine)) <= before + 1, warnings(engine)

    lab.restart(kvasir)
    wait_until_caching(engine, 200, expected)


def test_a_daemon_killed_at_random_moments(lab: Lab, expected: Expected) -> None:
    wanted = [expected(prompt) for prompt in PROMPTS]
    kvasir = lab.daemon()
    engine = lab.engine(kvasir)
    for after_s in (0.0, 0.05, 0.15, 0.4):
        # Half of the prompts are loaded, half are computed and saved.
        wait_until_caching(engine, int(1000 + after_s * 1000), expected)
        engine.generate(requests(PROMPTS[:3]))
        engine.forget()
        engine.send_generate(requests(PROMPTS))
        killer = kill_soon(kvasir, after_s)
        assert tokens(engine.receive_results()) == wanted
        killer.join()
        kvasir = lab.restart(kvasir)


def test_an_engine_starts_and_answers_without_a_daemon(lab: Lab, expected: Expected) -> None:
    kvasir = lab.daemon()
    kvasir.kill()
    engine = lab.engine(kvasir)
    assert engine.one(PROMPTS[0]).tokens == expected(PROMPTS[0])
    assert engine.one(PROMPTS[1]).tokens == expected(PROMPTS[1])
    assert len(warnings(engine)) == 1, warnings(engine)
    lab.restart(kvasir)
    wait_until_caching(engine, 300, expected)
