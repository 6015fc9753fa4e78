"""Real vLLM engines and real Kvasir daemons for the end-to-end tests.

`KVASIR_BIN` names the daemon (default: the release build). Logs stay in `out/e2e/TEST/`; when a
test fails, their ends are in the report. Under CI a missing vLLM or daemon is a failure; elsewhere
it skips the tests.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from lab.engine import Engine  # noqa: E402
from lab.paths import OUT, TINY_KJV, SetupError, kvasir_binary  # noqa: E402
from lab.testing import Expected, Lab  # noqa: E402

LOGS = OUT / "e2e"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "e2e: runs real vLLM engines against a real daemon")
    config.addinivalue_line("markers", "timeout(seconds): how long a test may take")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.e2e)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session", autouse=True)
def _requirements() -> None:
    missing: str | None = None
    if importlib.util.find_spec("vllm") is None:
        missing = "vLLM is not installed: `make setup-vllm` installs it"
    else:
        try:
            kvasir_binary()
        except SetupError as error:
            missing = str(error)
    if missing is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        for process in getattr(item, "lab_processes", []):
            report.sections.append((f"the end of {process.log}", process.tail(40)))
    return report


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", request.node.name).strip("-")
    logs = LOGS / name
    shutil.rmtree(logs, ignore_errors=True)
    lab = Lab(logs)
    request.node.lab_processes = lab.processes
    try:
        yield lab
    finally:
        lab.stop()


@pytest.fixture(scope="session")
def plain() -> Iterator[Engine]:
    """A vLLM without Kvasir: what it answers is what every engine has to answer."""
    logs = LOGS / "plain"
    shutil.rmtree(logs, ignore_errors=True)
    engine = Engine(TINY_KJV, logs / "engine.log", name="plain")
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def expected(plain: Engine) -> Expected:
    """The tokens that vLLM gives for a prompt when it computes all of it, without any cache."""
    known: dict[tuple[tuple[int, ...], int], tuple[int, ...]] = {}

    def tokens(prompt: list[int], max_tokens: int = 16) -> tuple[int, ...]:
        key = (tuple(prompt), max_tokens)
        if key not in known:
            plain.forget()
            result = plain.one(prompt, max_tokens=max_tokens)
            assert not result.cached
            known[key] = result.tokens
        return known[key]

    return tokens
