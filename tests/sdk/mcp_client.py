"""Checks the reference client of MCP for Python, as it is published, against `castra mcp`.

Run with the name of a scene, the directory of the server, and the server's command line. Each scene is
a life of one client, or of several.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import sys
import time
import urllib.request

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

SCENE, DIRECTORY, COMMAND, *ARGUMENTS = sys.argv[1:]
SCENES = {}
TOOLS = {
    "run_command",
    "run_code",
    "start_sandbox",
    "list_sandboxes",
    "stop_sandbox",
    "pause_sandbox",
    "resume_sandbox",
    "fork_sandbox",
    "read_file",
    "write_file",
    "list_files",
    "forward_port",
}


def scene(function):
    SCENES[function.__name__] = function
    return function


class Client:
    """A client and its server."""

    def __init__(self, session):
        self.session = session

    async def result(self, tool, **arguments):
        """Calls a tool, and returns its structured result."""
        called = await self.session.call_tool(tool, arguments)
        assert not called.is_error, (tool, arguments, called.content)
        assert called.content[0].text, (tool, arguments)
        return called.structured_content

    async def error(self, tool, **arguments):
        """Calls a tool that fails, and returns its message."""
        called = await self.session.call_tool(tool, arguments)
        assert called.is_error, (tool, arguments, called.content)
        return called.content[0].text

    async def run(self, command, **arguments):
        return await self.result("run_command", command=command, **arguments)

    async def sandboxes(self):
        listed = await self.result("list_sandboxes")
        return {sandbox["sandbox"]: sandbox["state"] for sandbox in listed["sandboxes"]}


@contextlib.asynccontextmanager
async def client(*more):
    parameters = StdioServerParameters(
        command=COMMAND, args=[*ARGUMENTS, *more], env=dict(os.environ), cwd=DIRECTORY
    )
    async with stdio_client(parameters) as (incoming, outgoing):
        async with ClientSession(incoming, outgoing) as session:
            await session.initialize()
            yield Client(session)


def servers():
    """Returns the pids of the servers, which are the children of this process."""
    tasks = pathlib.Path("/proc/self/task").iterdir()
    return sorted(int(pid) for task in tasks for pid in (task / "children").read_text().split())


async def eventually(what, holds):
    for _ in range(200):
        if await holds():
            return
        await asyncio.sleep(0.2)
    raise AssertionError(what)


@scene
async def tools():
    async with client() as it:
        listed = (await it.session.list_tools()).tools
        assert {tool.name for tool in listed} == TOOLS, listed
        assert all(tool.description and tool.output_schema for tool in listed)
        await fresh_sandboxes(it)
        sandbox = (await it.result("start_sandbox"))["sandbox"]
        await commands(it, sandbox)
        await limits(it, sandbox)
        await code(it, sandbox)
        await files(it, sandbox)
        await ports(it, sandbox)
        await lives(it, sandbox)
        await mistakes(it)
        assert await it.sandboxes() == {}


async def fresh_sandboxes(it):
    began = time.monotonic()
    first = await it.run("id -un; pwd; hostname; echo err >&2; exit 3")
    assert first["exit_code"] == 3 and first["stderr"] == "err\n", first
    assert first["stdout"].startswith("root\n/root\n"), first
    print(f"the first command took {time.monotonic() - began:.2f} s")
    took = []
    for _ in range(3):
        began = time.monotonic()
        other = await it.run("hostname; touch /root/file; ls /root")
        took.append(f"{time.monotonic() - began:.2f} s")
        assert other["stdout"].endswith("\nfile\n") and other["stdout"] != first["stdout"], other
    print("commands in fresh sandboxes took", ", ".join(took))
    assert await it.sandboxes() == {}


async def commands(it, sandbox):
    result = await it.run("cat; pwd; echo $((6 * 7)) >> kept", sandbox=sandbox, cwd="/tmp", stdin="in\n")
    assert result["stdout"] == "in\n/tmp\n" and result["exit_code"] == 0, result
    assert (await it.run("cat /tmp/kept", sandbox=sandbox))["stdout"] == "42\n"
    assert (await it.run("kill -TERM $$", sandbox=sandbox))["signal"] == "SIGTERM"
    # What runs in the background does not keep the call.
    background = await it.run("sleep 4000 & echo begun", sandbox=sandbox, timeout_secs=60)
    assert background["stdout"] == "begun\n" and not background["timed_out"], background
    assert "/missing" in await it.error("run_command", sandbox=sandbox, command="true", cwd="/missing")
    results = await asyncio.gather(*[it.run(f"echo {n}", sandbox=sandbox) for n in range(8)])
    assert [result["stdout"] for result in results] == [f"{n}\n" for n in range(8)]
    # Nothing is reached, neither this machine nor beyond.
    for address in ["10.0.2.2 1", "1.1.1.1 53"]:
        unreached = await it.run(f"nc -w 3 {address} < /dev/null", sandbox=sandbox)
        assert unreached["exit_code"] != 0, unreached


async def limits(it, sandbox):
    many = await it.run("head -c 1000000 /dev/zero | tr '\\0' x; echo end; seq 99999 >&2", sandbox=sandbox)
    left_out = many["stdout_left_out_bytes"]
    assert left_out == 1_000_004 - 16 * 1024, many
    note = f"\n[... {left_out} bytes left out ...]\n"
    assert many["stdout"].startswith("xxx") and many["stdout"].endswith("xend\n"), many
    assert note in many["stdout"] and len(many["stdout"]) == 16 * 1024 + len(note)
    assert many["stderr"].startswith("1\n2\n") and many["stderr"].endswith("\n99999\n")
    few = await it.run("seq 100", sandbox=sandbox, max_output_bytes=10)
    assert few["stdout"].startswith("1\n2\n3") and few["stdout"].endswith("100\n"), few
    late = await it.run("echo begun; sleep 4321", sandbox=sandbox, timeout_secs=1)
    assert late["timed_out"] and late["stdout"] == "begun\n" and late["exit_code"] is None, late
    # A call that its client gives up ends its program.
    with contextlib.suppress(Exception):
        await it.session.call_tool(
            "run_command", {"sandbox": sandbox, "command": "exec sleep 4321"}, read_timeout_seconds=2
        )
    async def is_gone():
        found = await it.run("ps -o args | grep '^sleep 4321'", sandbox=sandbox)
        return found["exit_code"] == 1
    await eventually("the end of both sleeps", is_gone)


async def code(it, sandbox):
    for arguments in [{}, {"sandbox": sandbox}]:
        ran = await it.result(
            "run_code", language="sh", code="read word\necho got $word\n", stdin="it\n", **arguments
        )
        assert ran["stdout"] == "got it\n", ran
    assert (await it.run("ls /tmp | grep code-", sandbox=sandbox))["exit_code"] == 1
    missing = await it.error("run_code", sandbox=sandbox, language="php", code="")
    assert "no php" in missing and "it has sh" in missing, missing


async def files(it, sandbox):
    written = await it.result("write_file", sandbox=sandbox, path="new/grüße", content="grüße\n")
    assert written == {"path": "/root/new/grüße", "size_bytes": 8}, written
    assert (await it.run("cat /root/new/grüße", sandbox=sandbox))["stdout"] == "grüße\n"
    read = await it.result("read_file", sandbox=sandbox, path="/root/new/../new/grüße")
    assert (read["content"], read["encoding"], read["left_out_bytes"]) == ("grüße\n", "utf-8", 0), read
    part = await it.result("read_file", sandbox=sandbox, path="new/grüße", offset=1, max_bytes=2)
    assert (part["content"], part["left_out_bytes"]) == ("r", 6), part
    rest = await it.result("read_file", sandbox=sandbox, path="new/grüße", offset=2)
    assert rest["content"] == "üße\n", rest
    await it.result("write_file", sandbox=sandbox, path="/tmp/bytes", content="/wA=", encoding="base64")
    back = await it.result("read_file", sandbox=sandbox, path="/tmp/bytes")
    assert (back["content"], back["encoding"], back["size_bytes"]) == ("/wA=", "base64", 2), back
    listed = await it.result("list_files", sandbox=sandbox, path="new")
    assert [entry["path"] for entry in listed["entries"]] == ["/root/new/grüße"], listed
    await it.run("mkdir many; cd many; touch $(seq 1200)", sandbox=sandbox)
    listed = await it.result("list_files", sandbox=sandbox, path="many")
    assert len(listed["entries"]) == 1000 and listed["left_out"] == 200
    for tool in ["read_file", "list_files"]:
        assert "/missing" in await it.error(tool, sandbox=sandbox, path="/missing")
        assert "NUL" in await it.error(tool, sandbox=sandbox, path="a\0b")
    assert "is a directory" in await it.error("read_file", sandbox=sandbox, path="/tmp")
    assert "is a directory" in await it.error("write_file", sandbox=sandbox, path="/tmp", content="")
    assert "not base64" in await it.error(
        "write_file", sandbox=sandbox, path="/tmp/a", content="?", encoding="base64"
    )


async def ports(it, sandbox):
    answer = "printf 'HTTP/1.0 200 OK\\r\\nContent-Length: 7\\r\\n\\r\\nserved\\n'"
    await it.run(f"(while {answer} | nc -l -p 8000; do :; done) >/dev/null 2>&1 &", sandbox=sandbox)
    forward = await it.result("forward_port", sandbox=sandbox, port=8000)
    again = await it.result("forward_port", sandbox=sandbox, port=8000)
    assert forward["address"] == again["address"] == f"127.0.0.1:{forward['local_port']}"
    async def answers():
        with contextlib.suppress(OSError):
            url = f"http://{forward['address']}/"
            return await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read()) == b"served\n"
    await eventually("the service", answers)
    taken = await it.error("forward_port", sandbox=sandbox, port=80, local_port=forward["local_port"])
    assert "cannot listen at" in taken, taken


async def lives(it, sandbox):
    await it.run("echo before > /tmp/state; sleep 5432 & ", sandbox=sandbox)
    await it.result("pause_sandbox", sandbox=sandbox)
    assert await it.sandboxes() == {sandbox: "paused"}
    for tool, arguments in [("run_command", {"command": "true"}), ("list_files", {})]:
        refused = await it.error(tool, sandbox=sandbox, **arguments)
        assert "is paused; resume_sandbox" in refused, refused
    await it.result("resume_sandbox", sandbox=sandbox)
    forked = await it.result("fork_sandbox", sandbox=sandbox, count=2)
    forks = [fork["sandbox"] for fork in forked["sandboxes"]]
    await it.run("echo fork > /tmp/state", sandbox=forks[0])
    states = [(await it.run("cat /tmp/state; ps -o args | grep '^sleep 5432'", sandbox=one))["stdout"]
              for one in [sandbox, *forks]]
    assert states == [f"{word}\nsleep 5432\n" for word in ["before", "fork", "before"]], states
    # A call has to wait for room, which --max-vms limits.
    await it.result("start_sandbox")
    full = await it.error("run_command", command="true")
    assert "--max-vms" in full and "stop_sandbox" in full, full
    for one in await it.sandboxes():
        await it.result("stop_sandbox", sandbox=one)


async def mistakes(it):
    for tool in TOOLS - {"start_sandbox", "list_sandboxes"}:
        given = {"command": "true", "language": "sh", "code": "", "path": "/", "content": "", "port": 1}
        schema = {t.name: t for t in (await it.session.list_tools()).tools}[tool].input_schema
        given = {name: value for name, value in given.items() if name in schema["properties"]}
        for name in ["unknown", "../lock", ""]:
            missing = await it.error(tool, sandbox=name, **given)
            assert "was not found; list_sandboxes" in missing, (tool, missing)
    for arguments, words in [
        ({"command": "true", "timeout": 5}, "has no argument timeout"),
        ({"command": "true", "timeout_secs": 3601}, "from 1 to 3600"),
        ({"command": 1}, "expected a string"),
        ({}, "command"),
    ]:
        refused = await it.error("run_command", **arguments)
        assert words in refused, refused
    unknown = await it.error("start_sandbox", template="unknown")
    assert "unknown was not found; there are base, " in unknown, unknown
    budget = await it.error("start_sandbox", memory_mib=1_000_000)
    assert "--memory-budget" in budget, budget


@scene
async def leaves():
    """Ends without a word while commands run, one of them in a fresh sandbox."""
    async with client() as it:
        sandbox = (await it.result("start_sandbox"))["sandbox"]
        await it.run("echo kept > /root/file", sandbox=sandbox)
        began = asyncio.Event()
        async def fresh():
            began.set()
            await it.run("sleep 1000", timeout_secs=1000)
        running = [asyncio.create_task(it.run("sleep 1000", sandbox=sandbox)), asyncio.create_task(fresh())]
        await began.wait()
        await asyncio.sleep(3)
        assert not any(task.done() for task in running)
        os.kill(os.getpid(), signal.SIGKILL)


@scene
async def returns():
    """Finds what the client before it left."""
    async with client() as it:
        [(sandbox, state)] = (await it.sandboxes()).items()
        assert state == "paused"
        await it.result("resume_sandbox", sandbox=sandbox)
        assert (await it.run("cat /root/file", sandbox=sandbox))["stdout"] == "kept\n"
        await it.result("stop_sandbox", sandbox=sandbox)


@scene
async def crashes():
    """Has two servers at once, of which both are killed, and then another one."""
    with contextlib.suppress(Exception, asyncio.CancelledError):
        async with client() as one, client() as other:
            kept = (await one.result("start_sandbox"))["sandbox"]
            others = (await other.result("start_sandbox"))["sandbox"]
            assert kept not in await other.sandboxes() and others not in await one.sandboxes()
            running = asyncio.create_task(one.run("sleep 1000", timeout_secs=1000))
            await asyncio.sleep(3)
            assert not running.done()
            for pid in servers():
                os.kill(pid, signal.SIGKILL)
            running.cancel()
    async with client() as it:
        assert await it.sandboxes() == {kept: "running"}
        assert (await it.run("echo here", sandbox=kept))["stdout"] == "here\n"
        await it.result("stop_sandbox", sandbox=kept)
        # The other one's is paused by the server of another slot.
        state = pathlib.Path(os.environ["XDG_STATE_HOME"]) / "castra/mcp/1/sandboxes" / f"{others}.json"
        async def is_paused():
            return json.loads(state.read_text())["paused"] is not None
        await eventually("a pause", is_paused)
    async with client("--state", str(state.parent.parent)) as it:
        assert await it.sandboxes() == {others: "paused"}
        await it.result("stop_sandbox", sandbox=others)


@scene
async def networks():
    """Reaches this machine from a sandbox, by a server that lets it."""
    async with client() as it:
        server = await asyncio.start_server(lambda _, out: (out.write(b"reached\n"), out.close()), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        reached = await it.run(f"nc -w 10 10.0.2.2 {port} < /dev/null")
        assert reached["stdout"] == "reached\n", reached


asyncio.run(SCENES[SCENE]())
