"""Any Redis client can talk to the daemon: ``redis-cli`` is the debugger."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import kvasir
from support import make_keys, make_space, store
from system.daemon import Daemon, clean_environment, run

SPACE = make_space((64 << 10,))
Cli = Callable[..., str]


@pytest.fixture(scope="session")
def redis_cli() -> str:
    """The program; under CI it is installed where it is missing."""
    if shutil.which("redis-cli") is None and os.environ.get("CI") == "true" and os.geteuid() == 0:
        for command in (["update", "-qq"], ["install", "-qq", "-y", "redis-tools"]):
            subprocess.run(["apt-get", *command], timeout=300, check=False)
    found = shutil.which("redis-cli")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no redis-cli, and nothing may be skipped under CI")
        pytest.skip("there is no redis-cli: apt-get install redis-tools")
    return found


@pytest.fixture
def cli(daemon: Daemon, redis_cli: str) -> Cli:
    """Asks through ``redis-cli``, which prints as for a script."""

    def ask(*arguments: str, protocol: int = 2) -> str:
        flags = ["-3"] if protocol == 3 else []
        result = run([redis_cli, "-s", daemon.path, *flags, *arguments])
        assert result.returncode == 0, result
        return result.stdout.rstrip("\n")

    return ask


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_cli_asks_what_every_redis_answers(cli: Cli, protocol: int) -> None:
    def ask(*arguments: str) -> str:
        return cli(*arguments, protocol=protocol)

    assert ask("PING") == "PONG"
    assert ask("PING", "hello") == "hello"
    assert ask("ECHO", "two words") == "two words"
    assert "kvasir" in ask("HELLO", str(protocol))
    info = dict(line.split(":", 1) for line in ask("INFO").splitlines() if ":" in line)
    assert info["kvasir_version"].strip() == kvasir.__version__
    assert int(info["connected_clients"]) == 1
    assert int(info["arena_bytes"]) == 16 << 20
    assert int(ask("COMMAND", "COUNT")) > 20
    commands = ask("COMMAND")
    assert "kv.match" in commands
    assert "hello" in commands
    assert ask("COMMAND", "DOCS") == ""
    assert int(ask("CLIENT", "ID")) > 0
    assert ask("CLIENT", "SETNAME", "me") == "OK"
    assert ask("CLIENT", "SETINFO", "LIB-NAME", "lib") == "OK"
    assert "id=" in ask("CLIENT", "INFO")
    assert "session=" in ask("CLIENT", "LIST")
    assert ask("CLIENT", "GETNAME") == ""
    assert ask("SELECT", "0") == "OK"
    assert ask("CONFIG", "GET", "maxmemory") == ""
    assert ask("RESET") == "RESET"
    assert ask("QUIT") == "OK"
    assert "unknown command" in ask("SET", "a", "b")


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_cli_shows_what_is_stored(daemon: Daemon, cli: Cli, protocol: int) -> None:
    root, keys = make_keys(SPACE, 3)
    with kvasir.Client(daemon.path) as client:
        store(client, SPACE, root, keys)
        handle = str(client.open(SPACE).handle)
    spaces = cli("KV.SPACES", protocol=protocol)
    assert SPACE.id.hex() in spaces
    assert "a model" in spaces
    assert "chunks" in cli("KV.STATS", protocol=protocol)
    assert "pid" in cli("KV.VERSION", protocol=protocol)
    space = SPACE.to_json()
    # A session of its own has to open the space first: a script in one connection.
    script = (
        f"KV.OPEN '{space}'\n"
        f"KV.LOCATE {handle} {root.hex()} {keys.hex()} HEX\n"
        f"KV.MATCH {handle} {root.hex()} {keys.hex()} HOLD 1000 HEX\n"
        f"KV.EXPLAIN {handle} {root.hex()} {keys.hex()} HEX\n"
    )
    result = subprocess.run(
        ["redis-cli", "-s", daemon.path, *(["-3"] if protocol == 3 else [])],
        input=script,
        env=clean_environment(),
        capture_output=True,
        encoding="latin-1",  # The space's id comes as it is.
        timeout=10,
        check=True,
    )
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "hit" in lines, result.stdout
    assert "all 3 chunks are in memory" in lines


def test_redis_cli_pipes_thousands_of_commands(daemon: Daemon, redis_cli: str) -> None:
    count = 5000
    result = subprocess.run(
        [redis_cli, "-s", daemon.path, "--pipe"],
        input=b"*1\r\n$4\r\nPING\r\n" * count,
        env=clean_environment(),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 0, result
    assert f"replies: {count}".encode() in result.stdout


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_connects_and_asks(daemon: Daemon, protocol: int) -> None:
    if os.environ.get("CI") == "true":
        import redis
    else:
        redis: Any = pytest.importorskip("redis", reason="there is no redis-py: pip install redis")
    client = redis.Redis(
        unix_socket_path=daemon.path, protocol=protocol, client_name="py", decode_responses=True
    )
    try:
        assert client.ping() is True
        assert client.echo("hello") == "hello"
        info = client.info()
        assert info["kvasir_version"] == kvasir.__version__
        assert info["connected_clients"] == 1
        assert client.client_getname() == "py"
        assert client.client_id() > 0
        assert client.client_list()[0]["name"] == "py"
        assert "kv.match" in client.command()
        assert client.command_count() > 20
        assert client.config_get("*") == {}
        assert client.execute_command("KV.VERSION")
        with pytest.raises(redis.ResponseError, match="unknown command"):
            client.get("key")
        with client.pipeline(transaction=False) as pipeline:
            for number in range(100):
                pipeline.echo(str(number))
            assert pipeline.execute() == [str(number) for number in range(100)]
        assert client.ping() is True
    finally:
        client.close()
