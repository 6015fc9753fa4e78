"""The built-in engine as a user runs it: generate, chat, eval, demo, against a real daemon."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support import wait_until
from system.daemon import Daemon, clean_environment

MODEL = Path(__file__).resolve().parents[3] / "models" / "tiny-kjv"
LINES = (MODEL / "corpus.txt").read_text().splitlines()
CHUNK_TOKENS = 256


def run(
    binary: str, *words: str, text: str = "", status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and compares its exit status."""
    done = subprocess.run(
        [binary, *words],
        input=text,
        capture_output=True,
        text=True,
        timeout=180,
        env=clean_environment(),
        check=False,
    )
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done


def generate(binary: str, prompt: str, *words: str, tokens: int = 12) -> Any:
    """The JSON of `kvasir generate`."""
    command = ["generate", "--model", str(MODEL), "--max-tokens", str(tokens), "--json", "-f", "-"]
    return json.loads(run(binary, *command, *words, text=prompt).stdout.splitlines()[-1])


def passage(seed: int, verses: int) -> str:
    start = random.Random(seed).randrange(len(LINES) - verses)
    return "\n".join(LINES[start : start + verses])


def same(a: Any, b: Any) -> bool:
    """Every token, and every bit of the logits that they were chosen from."""
    return bool(a["tokens"] == b["tokens"] and a["logits"] == b["logits"])


def test_processes_that_share_a_daemon_answer_alike_to_the_bit(daemon: Daemon, binary: str) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    beginning = passage(seed, 25)
    for number in range(4):
        prompt = beginning + "\n" + passage(rng.randrange(1 << 30), rng.randrange(1, 12))
        alone = generate(binary, prompt, "--store", "none", "--threads", "1")
        first = generate(binary, prompt, "--store", daemon.path)
        second = generate(binary, prompt, "--store", daemon.path, "--threads", "3")
        assert same(alone, first), f"seed {seed}"
        assert same(alone, second), f"seed {seed}"
        whole = (second["prompt_tokens"] - 1) // CHUNK_TOKENS * CHUNK_TOKENS
        assert second["reused_tokens"] == whole > 0
        assert (first["reused_tokens"] > 0) == (number > 0), f"seed {seed}"


def test_a_daemon_that_was_killed_costs_time_and_no_bit(idle_daemon: Daemon, binary: str) -> None:
    prompt = passage(4, 30)
    alone = generate(binary, prompt, "--store", "none")
    idle_daemon.start()
    assert same(alone, generate(binary, prompt, "--store", idle_daemon.path))
    idle_daemon.kill()
    missing = run(
        binary, "generate", "--model", str(MODEL), "--store", idle_daemon.path, "x", status=1
    )
    assert "kvasir serve" in missing.stderr
    idle_daemon.start()
    cold = generate(binary, prompt, "--store", idle_daemon.path)
    warm = generate(binary, prompt, "--store", idle_daemon.path)
    assert cold["reused_tokens"] == 0 < warm["reused_tokens"]
    assert same(alone, cold)
    assert same(alone, warm)


def test_salts_share_nothing(daemon: Daemon, binary: str) -> None:
    prompt = passage(5, 20)
    generate(binary, prompt, "--store", daemon.path, "--salt", "a")
    for salt, reuses in (("b", False), ("a", True)):
        found = generate(binary, prompt, "--store", daemon.path, "--salt", salt)
        assert (found["reused_tokens"] > 0) == reuses


def test_without_a_daemon_the_usual_one_is_missed_in_a_sentence_and_all_is_computed(
    binary: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [binary, "generate", "--model", str(MODEL), "--max-tokens", "4", "In the beginning"],
        capture_output=True,
        text=True,
        env={**clean_environment(), "KVASIR_SOCKET": str(tmp_path / "none.sock")},
        check=True,
    )
    assert done.stdout.strip()
    assert "everything is computed" in done.stderr
    assert "0 from Kvasir" in done.stderr


def test_sampling_is_repeatable_by_its_seed(binary: str) -> None:
    words = ("--store", "none", "--temperature", "1.2", "--top-p", "0.95")
    answers = [
        generate(binary, "And it came to pass", *words, "--seed", seed, tokens=20)["tokens"]
        for seed in ("1", "1", "2")
    ]
    assert answers[0] == answers[1] != answers[2]


def test_a_chat_goes_on_from_what_an_earlier_one_left(daemon: Daemon, binary: str) -> None:
    beginning = daemon.directory / "beginning.txt"
    beginning.write_text(passage(6, 20))
    words = ["chat", "--model", str(MODEL), "--system", str(beginning), "--store", daemon.path]
    words += ["--max-tokens", "16"]
    first = run(binary, *words, text="Who is this?\n\n/what\nAnd then?\n/quit\nnever\n")
    second = run(binary, *words, text="Who is this?\n/reset\nWho is this?\n")
    assert first.stderr.count("prompt of") == 2
    assert "kept by the engine" in first.stderr
    assert "there is no /what" in first.stderr
    prompts = [line for line in second.stderr.splitlines() if "prompt of" in line]
    assert len(prompts) == 2
    assert all(" 0 from Kvasir" not in line for line in prompts)
    assert "forgotten" in second.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["generate", "--model", "/nowhere", "x"], "/nowhere"),
        (["generate", "--model", str(MODEL)], "give a prompt"),
        (["generate", "--model", str(MODEL), "-f", "x", "y"], "not both"),
        (["generate", "--model", str(MODEL), "-f", "/nowhere.txt"], "/nowhere.txt"),
        (["generate", "--model", str(MODEL), "--store", "none", ""], "empty"),
        (["generate", "--model", str(MODEL), "--max-tokens", "40000", "x"], "context of 32768"),
        (["generate", "--model", str(MODEL), "--max-tokens", "0", "x"], "--max-tokens"),
        (["generate", "--model", str(MODEL), "--max-tokens", str(2**63 - 1), "x"], "--max-tokens"),
        (["generate", "--model", str(MODEL), "--threads", "0", "x"], "--threads"),
        (["generate", "--model", str(MODEL), "--temperature", "-1", "x"], "--temperature"),
        (["generate", "--model", str(MODEL), "--top-p", "0", "x"], "--top-p"),
        (["generate", "--model", str(MODEL), "--chunk-tokens", "100", "x"], "multiple of 64"),
        (["eval", "--model", str(MODEL), "--text", "/nowhere.txt"], "/nowhere.txt"),
        (["eval", "--model", str(MODEL), "--text", "README", "--contexts", "a"], "--contexts"),
        (["eval", "--model", str(MODEL), "--text", "README", "--contexts", ""], "--contexts"),
        (["eval", "--model", str(MODEL), "--text", "README", "--windows", "0"], "--windows"),
        (
            [
                *("eval", "--model", str(MODEL), "--text", str(MODEL / "corpus.txt")),
                *("--contexts", str(2**63 - 1)),
            ],
            "this model takes",
        ),
        (["eval", "--model", str(MODEL), "--text", "x", "--reuse", "magic"], "bfloat16"),
        (["eval", "--model", str(MODEL), "--text", str(MODEL / "config.json")], "give a longer"),
        (["demo", "--model", "/nowhere"], "/nowhere"),
        (["demo", "--threads", "0"], "--threads"),
        (["demo", "--memory", "1MiB"], "--memory"),
    ],
)
def test_bad_input_is_answered_with_what_to_do(
    binary: str, words: Sequence[str], hint: str
) -> None:
    done = subprocess.run(
        [binary, *words, *(["--store", "none"] if words[0] == "generate" else [])],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
        check=False,
    )
    assert done.returncode in (1, 64), (done.returncode, done.stderr)
    assert hint in done.stderr
    assert len(done.stderr) < 1500


def test_text_that_is_not_utf8_is_refused(binary: str, tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"caf\xe9")
    done = run(binary, "eval", "--model", str(MODEL), "--text", str(path), status=1)
    assert "iconv" in done.stderr


def test_eval_prints_a_table_for_people(binary: str) -> None:
    words = [
        "eval",
        "--model",
        str(MODEL),
        "--text",
        "-",
        "--contexts",
        "128,256",
        "--windows",
        "1",
    ]
    done = run(binary, *words, text=passage(8, 30))
    assert "perplexity" in done.stdout
    assert "100.00 %" in done.stdout


def children(pid: int) -> dict[int, list[str]]:
    """The command lines of a process's children."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    found = {}
    with contextlib.suppress(OSError):
        for word in path.read_text().split():
            with contextlib.suppress(OSError):
                found[int(word)] = Path(f"/proc/{word}/cmdline").read_text().split("\0")
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_ended_demo_leaves_no_process(
    binary: str, tmp_path: Path, number: signal.Signals
) -> None:
    with (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(
            [binary, "demo", "--model", str(MODEL)],
            stdout=out,
            stderr=out,
            env=clean_environment(),
            start_new_session=True,
        )
    try:

        def daemon_and_engine() -> bool:
            names = [line[1] for line in children(demo.pid).values() if len(line) > 1]
            return sorted(names) == ["demo-engine", "serve"]

        wait_until(daemon_and_engine, "the demo has a daemon and an engine", 120)
        left = children(demo.pid)
        (socket,) = (line[line.index("--socket") + 1] for line in left.values() if "serve" in line)
        if number == signal.SIGINT:  # Ctrl-C reaches the whole group.
            os.killpg(demo.pid, number)
        else:
            demo.send_signal(number)
        status = demo.wait(20)
        assert status == (-number if number == signal.SIGKILL else 128 + number)
        wait_until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), "all are gone", 20
        )
        if number != signal.SIGKILL:
            assert not Path(socket).parent.exists()
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGKILL)


def test_a_full_disk_is_said_in_a_sentence(binary: str) -> None:
    words = [binary, "generate", "--model", str(MODEL), "--store", "none", "In the beginning"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert "can't write to standard output" in done.stderr


def test_weights_that_are_written_while_they_are_read_are_never_stored_under_a_name(
    daemon: Daemon, binary: str, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    for path in model.iterdir():
        path.chmod(0o644)
    # The daemon is stopped, so that the command waits between reading the weights and naming them.
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        process = subprocess.Popen(
            [binary, "generate", "--model", str(model), "--store", daemon.path, "x"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        wait_until(
            lambda: any("socket:" in link for link in open_files(process.pid)),
            "the command has read its model and connects",
            20,
        )
        with (model / "model.safetensors").open("r+b") as weights:
            weights.seek(-4, os.SEEK_END)
            weights.write(b"\0\0\0\0")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was changed while it was read" in errors


def open_files(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(entry.readlink()))
    return found


def test_the_demo_without_python_or_network_ends_with_its_figures(binary: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [binary, "demo", "--model", str(MODEL)],
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": "/nonexistent", "HOME": "/nonexistent"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["demo"] == "builtin"
    assert line["identical"] is True
    assert line["requests"] == 13
    assert line["tokens_reused"] > 0.9 * line["tokens_total"] > 0
    assert line["ttft_warm_ms_p50"] * 5 < line["ttft_cold_ms_p50"]
    assert "█" in done.stdout
    assert "NO\n" not in done.stdout
    # A minute on two processors. Processor time is about the same however many others are at work
    # here. (What the engines used counts, because the demo has waited for them.)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 100
