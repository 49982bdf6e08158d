"""Checks the E2B SDK for Python, as it is published, against `castra serve`.

Run with `sync` or `async`, for the class of that kind. The SDK's own variables name the server.
"""

import asyncio
import hashlib
import http.client
import inspect
import os
import sys
import time
import urllib.error
import urllib.request
import uuid

import e2b
from e2b import AsyncSandbox, Sandbox

KIND = sys.argv[1]
CLASS = {"sync": Sandbox, "async": AsyncSandbox}[KIND]
# Value of this run's own metadata.
OWN = f"a b&c/{uuid.uuid4()}"
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


async def done(result):
    """Returns a result of either class."""
    return await result if inspect.isawaitable(result) else result


async def raises(kind, call):
    try:
        await done(call())
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


async def eventually(what, holds):
    for _ in range(100):
        if await done(holds()):
            return
        await asyncio.sleep(0.2)
    raise AssertionError(what)


async def run(sandbox, line, **options):
    return await done(sandbox.commands.run(line, **options))


async def page(paginator):
    return await done(paginator.next_items())


@check
async def commands(sandbox):
    result = await run(sandbox, "echo out; echo err >&2; pwd; id -un; echo $SET $GIVEN", envs={"GIVEN": "b"})
    assert result.stdout == "out\n/home/user\nuser\na b\n" and result.stderr == "err\n", result
    assert (await run(sandbox, "pwd; id -un", cwd="/tmp", user="root")).stdout == "/tmp\nroot\n"
    error = await raises(e2b.CommandExitException, lambda: sandbox.commands.run("echo gone; exit 3"))
    assert error.exit_code == 3 and error.stdout == "gone\n"
    assert (await run(sandbox, "printf 'grüße 🦀'")).stdout == "grüße 🦀"
    many = (await run(sandbox, "head -c 1000000 /dev/zero | tr '\\0' x")).stdout
    assert many == "x" * 1_000_000, len(many)
    await raises(e2b.InvalidArgumentException, lambda: sandbox.commands.run("true", cwd="/missing"))
    await raises(e2b.AuthenticationException, lambda: sandbox.commands.run("true", user="stranger"))


@check
async def background(sandbox):
    handle = await run(sandbox, "read line; echo got $line; cat", background=True, stdin=True)
    known = await done(sandbox.commands.list())
    assert handle.pid in [process.pid for process in known]
    await done(sandbox.commands.send_stdin(handle.pid, "one\n"))
    await done(sandbox.commands.send_stdin(handle.pid, b"two\n"))
    await done(sandbox.commands.close_stdin(handle.pid))
    assert (await done(handle.wait())).stdout == "got one\ntwo\n"
    sleeping = await run(sandbox, "sleep 1000", background=True)
    again = await done(sandbox.commands.connect(sleeping.pid))
    assert await done(sandbox.commands.kill(sleeping.pid))
    error = await raises(e2b.CommandExitException, lambda: again.wait())
    assert error.exit_code == -1, error
    assert not await done(sandbox.commands.kill(sleeping.pid))
    await raises(e2b.NotFoundException, lambda: sandbox.commands.connect(sleeping.pid))


@check
async def time_limits(sandbox):
    await raises(e2b.TimeoutException, lambda: sandbox.commands.run("exec sleep 4321", timeout=1))
    async def is_gone():
        return "4321" not in (await run(sandbox, "ps -o args | grep -v grep | grep 'sleep 4321' || true")).stdout
    await eventually("the end of its command", is_gone)


@check
async def terminals(sandbox):
    shown = bytearray()
    size = e2b.PtySize(rows=20, cols=90)
    if KIND == "async":
        handle = await sandbox.pty.create(size, on_data=shown.extend)
    else:
        handle = sandbox.pty.create(size)
    await done(sandbox.pty.resize(handle.pid, e2b.PtySize(rows=30, cols=100)))
    await done(sandbox.pty.send_stdin(handle.pid, b"stty size; exit 0\n"))
    if KIND == "async":
        await handle.wait()
    else:
        handle.wait(on_pty=shown.extend)
    assert b"30 100" in shown, bytes(shown)


@check
async def files(sandbox):
    content = os.urandom(5_000_000)
    digest = hashlib.sha256(content).hexdigest()
    for options in [{}, {"use_octet_stream": True}, {"gzip": True}]:
        info = await done(sandbox.files.write("new/directory/big", content, **options))
        assert info.path == "/home/user/new/directory/big" and info.name == "big"
        inside = (await run(sandbox, "sha256sum new/directory/big")).stdout
        assert inside.startswith(digest), options
    back = await done(sandbox.files.read("/home/user/new/directory/big", format="bytes"))
    assert hashlib.sha256(back).hexdigest() == digest
    stream = await done(sandbox.files.read("/home/user/new/directory/big", format="stream"))
    hashed = hashlib.sha256()
    if KIND == "async":
        async for piece in stream:
            hashed.update(piece)
    else:
        for piece in stream:
            hashed.update(piece)
    assert hashed.hexdigest() == digest
    pair = [{"path": "/tmp/a/one", "data": "1"}, {"path": "/tmp/a/two", "data": b"2"}]
    assert [info.path for info in await done(sandbox.files.write_files(pair))] == ["/tmp/a/one", "/tmp/a/two"]
    assert await done(sandbox.files.read("/tmp/a/two")) == "2"
    await run(sandbox, "ln -s one /tmp/a/link; mkdir /tmp/a/deep; touch /tmp/a/deep/file; chmod 640 /tmp/a/one")
    listed = await done(sandbox.files.list("/tmp/a"))
    assert [entry.name for entry in listed] == ["deep", "link", "one", "two"], listed
    assert len(await done(sandbox.files.list("/tmp/a", depth=2))) == 5
    info = await done(sandbox.files.get_info("/tmp/a/one"))
    assert (info.size, info.mode, info.owner, info.group) == (1, 0o640, "user", "user"), info
    assert info.permissions == "-rw-r-----"
    assert (await done(sandbox.files.get_info("/tmp/a/link"))).symlink_target == "one"
    renamed = await done(sandbox.files.rename("/tmp/a/two", "/tmp/b/three"))
    assert renamed.path == "/tmp/b/three" and not await done(sandbox.files.exists("/tmp/a/two"))
    assert await done(sandbox.files.make_dir("/tmp/c/d")) and not await done(sandbox.files.make_dir("/tmp/c/d"))
    await done(sandbox.files.remove("/tmp/c"))
    assert not await done(sandbox.files.exists("/tmp/c"))
    for call in [sandbox.files.read, sandbox.files.list, sandbox.files.get_info]:
        await raises(e2b.NotFoundException, lambda: call("/missing"))
    await raises(e2b.InvalidArgumentException, lambda: sandbox.files.read("/tmp"))
    await raises(e2b.InvalidArgumentException, lambda: sandbox.files.write("/tmp", "text"))


@check
async def addresses_of_files(sandbox):
    def fetch(url):
        return urllib.request.urlopen(url, timeout=60).read()
    await done(sandbox.files.write("/tmp/signed", "content"))
    assert fetch(sandbox.download_url("/tmp/signed")) == b"content"
    assert fetch(sandbox.download_url("/tmp/signed", use_signature_expiration=60)) == b"content"
    url = sandbox.download_url("/tmp/signed")
    for wrong in [url[:-1], url.replace("signed", "other"), url.replace("%2Ftmp", "%2Fetc")]:
        error = await raises(urllib.error.HTTPError, lambda: fetch(wrong))
        assert error.code == 401, wrong


@check
async def watches(sandbox):
    await run(sandbox, "mkdir -p watched/below")
    seen = []
    if KIND == "async":
        handle = await sandbox.files.watch_dir("watched", on_event=seen.append, recursive=True)
    else:
        handle = sandbox.files.watch_dir("watched", recursive=True)
    await done(sandbox.files.write("watched/below/file", "text"))
    async def has_seen():
        if KIND == "sync":
            seen.extend(handle.get_new_events())
        names = [(event.name, event.type.value) for event in seen]
        return ("below/file", "create") in names and ("below/file", "write") in names
    await eventually("events", has_seen)
    await done(handle.stop())
    await raises(e2b.NotFoundException, lambda: sandbox.files.watch_dir("/missing", **({"on_event": print} if KIND == "async" else {})))


@check
async def services(sandbox):
    answer = "printf 'HTTP/1.0 200 OK\\r\\nContent-Length: 7\\r\\n\\r\\nserved\\n'"
    await run(sandbox, f"while {answer} | nc -l -p 8000; do :; done", background=True)
    def fetch(port):
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": port}
        request = urllib.request.Request(os.environ["E2B_SANDBOX_URL"] + "/file", headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=60).read()
        except urllib.error.HTTPError as error:
            assert error.code == 502
            return error.read()
        except (OSError, http.client.HTTPException):
            # The service has ended while it answered: it serves one client after another.
            return b""
    await eventually("the service", lambda: fetch("8000") == b"served\n")
    assert b"port is not open" in fetch("8001")


@check
async def pauses(sandbox):
    handle = await run(sandbox, "exec 3> /tmp/kept; read line; echo $line >&3; echo still here", background=True, stdin=True)
    assert await done(sandbox.pause()) and not await done(sandbox.pause())
    assert not await done(sandbox.is_running())
    await raises(e2b.SandboxException, lambda: sandbox.commands.run("true"))
    await done(sandbox.connect())
    again = await done(sandbox.commands.connect(handle.pid))
    await done(sandbox.commands.send_stdin(handle.pid, "after\n"))
    assert (await done(again.wait())).stdout == "still here\n"
    assert await done(sandbox.files.read("/tmp/kept")) == "after\n"


@check
async def forks_and_snapshots(sandbox):
    await run(sandbox, "echo before > /tmp/state")
    first, second = await done(sandbox.fork(count=2))
    await run(sandbox, "echo original > /tmp/state")
    await run(first, "echo first > /tmp/state")
    states = [await done(one.files.read("/tmp/state")) for one in [sandbox, first, second]]
    assert states == ["original\n", "first\n", "before\n"], states
    snapshot = await done(first.create_snapshot(name=f"named-{KIND}"))
    assert snapshot.snapshot_id in [known.snapshot_id for known in await page(CLASS.list_snapshots())]
    for fork in [first, second]:
        assert await done(fork.kill())
    for name in [snapshot.snapshot_id, f"named-{KIND}"]:
        made = await done(CLASS.create(name))
        assert await done(made.files.read("/tmp/state")) == "first\n"
        assert await done(made.kill())
    assert await done(CLASS.delete_snapshot(snapshot.snapshot_id))
    assert not await done(CLASS.delete_snapshot(snapshot.snapshot_id))


@check
async def lists(sandbox):
    info = await done(sandbox.get_info())
    assert info.sandbox_id == sandbox.sandbox_id and info.metadata == {"kind": OWN}
    query = e2b.SandboxQuery(metadata={"kind": OWN}, state=[e2b.SandboxState.RUNNING])
    assert [one.sandbox_id for one in await page(CLASS.list(query=query))] == [sandbox.sandbox_id]
    other = e2b.SandboxQuery(metadata={"kind": "other"})
    assert await page(CLASS.list(query=other)) == []
    more = await done(CLASS.create())
    paginator, found = CLASS.list(limit=1), []
    while paginator.has_next:
        found.extend(one.sandbox_id for one in await page(paginator))
    assert set(found) >= {sandbox.sandbox_id, more.sandbox_id} and len(found) == len(set(found))
    assert await done(more.kill()) and not await done(more.kill())
    (metrics,) = await done(sandbox.get_metrics())
    assert metrics.mem_total > metrics.mem_used > 0 and metrics.disk_total > 0


@check
async def lives(_):
    brief = await done(CLASS.create(timeout=60))
    await done(brief.set_timeout(1))
    async def has_ended():
        return not await done(brief.is_running())
    await eventually("the end of its time", has_ended)
    await raises(e2b.NotFoundException, lambda: brief.set_timeout(1))
    lifecycle = {"on_timeout": "pause", "auto_resume": True}
    sleeper = await done(CLASS.create(timeout=1, lifecycle=lifecycle))
    async def is_paused():
        return (await done(sleeper.get_info())).state == e2b.SandboxState.PAUSED
    await eventually("a pause at the end of its time", is_paused)
    assert (await run(sleeper, "echo awake")).stdout == "awake\n"
    await done(sleeper.kill())


@check
async def refusals(_):
    await raises(e2b.SandboxException, lambda: CLASS.create("unknown-template"))
    await raises(e2b.NotFoundException, lambda: CLASS.connect("unknownsandbox"))
    error = await raises(e2b.SandboxException, lambda: CLASS.create(mcp={"time": {}}))
    assert "501" in str(error), error
    await raises(e2b.AuthenticationException, lambda: CLASS.create(api_key="e2b_" + "0" * 40))
    isolated = await done(CLASS.create(allow_internet_access=False))
    await raises(e2b.CommandExitException, lambda: isolated.commands.run("nc -w 3 10.0.2.2 1 < /dev/null"))
    await done(isolated.kill())


async def main():
    begun = time.monotonic()
    sandbox = await done(CLASS.create(timeout=1200, metadata={"kind": OWN}, envs={"SET": "a"}))
    for function in CHECKS:
        await function(sandbox)
        print(f"{time.monotonic() - begun:6.1f} s  {KIND}: {function.__name__}", flush=True)
    assert await done(sandbox.kill())


asyncio.run(main())
# The SDK's HTTP client has threads of its own, and crashes now and then if Python ends around them.
sys.stdout.flush()
os._exit(0)
