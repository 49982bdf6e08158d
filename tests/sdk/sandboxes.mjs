// Checks the E2B SDK for TypeScript, as it is published, against `castra serve`. The SDK's own
// variables name the server.

import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'

import { CommandExitError, FileType, NotFoundError, Sandbox, TimeoutError } from 'e2b'

const hash = (bytes) => createHash('sha256').update(bytes).digest('hex')

async function eventually(what, holds) {
  for (let tries = 0; tries < 100; tries++) {
    if (await holds()) return
    await pause(200)
  }
  assert.fail(what)
}

const checks = {
  async commands(sandbox) {
    const result = await sandbox.commands.run('echo out; echo err >&2; pwd; echo $SET $GIVEN', {
      envs: { GIVEN: 'b' },
    })
    assert.equal(result.stdout, 'out\n/home/user\na b\n')
    assert.equal(result.stderr, 'err\n')
    const asRoot = await sandbox.commands.run('pwd; id -un', { cwd: '/tmp', user: 'root' })
    assert.equal(asRoot.stdout, '/tmp\nroot\n')
    await assert.rejects(sandbox.commands.run('exit 3'), (error) => {
      return error instanceof CommandExitError && error.exitCode === 3
    })
    const many = await sandbox.commands.run("head -c 1000000 /dev/zero | tr '\\0' x")
    assert.equal(many.stdout, 'x'.repeat(1_000_000))
    await assert.rejects(sandbox.commands.run('sleep 1000', { timeoutMs: 1000 }), TimeoutError)
  },

  async background(sandbox) {
    const handle = await sandbox.commands.run('read line; echo got $line; cat', {
      background: true,
      stdin: true,
    })
    assert((await sandbox.commands.list()).some(({ pid }) => pid === handle.pid))
    await sandbox.commands.sendStdin(handle.pid, 'one\n')
    await sandbox.commands.sendStdin(handle.pid, 'two\n')
    await sandbox.commands.closeStdin(handle.pid)
    assert.equal((await handle.wait()).stdout, 'got one\ntwo\n')
    const sleeping = await sandbox.commands.run('sleep 1000', { background: true })
    const again = await sandbox.commands.connect(sleeping.pid)
    // Before it is killed, so that the failure is awaited.
    const ended = assert.rejects(again.wait(), CommandExitError)
    const left = assert.rejects(sleeping.wait(), CommandExitError)
    assert(await sandbox.commands.kill(sleeping.pid))
    await Promise.all([ended, left])
    assert(!(await sandbox.commands.kill(sleeping.pid)))
  },

  async terminals(sandbox) {
    let shown = ''
    const onData = (bytes) => (shown += new TextDecoder().decode(bytes))
    const handle = await sandbox.pty.create({ cols: 90, rows: 20, onData })
    await sandbox.pty.resize(handle.pid, { cols: 100, rows: 30 })
    await sandbox.pty.sendInput(handle.pid, new TextEncoder().encode('stty size; exit 0\n'))
    await handle.wait()
    assert.match(shown, /30 100/)
  },

  async files(sandbox) {
    const content = randomBytes(5_000_000)
    const info = await sandbox.files.write('new/directory/big', new Blob([content]))
    assert.equal(info.path, '/home/user/new/directory/big')
    const inside = (await sandbox.commands.run('sha256sum new/directory/big')).stdout
    assert(inside.startsWith(hash(content)))
    const back = await sandbox.files.read('/home/user/new/directory/big', { format: 'bytes' })
    assert.equal(hash(back), hash(content))
    await sandbox.files.write([
      { path: '/tmp/a/one', data: '1' },
      { path: '/tmp/a/two', data: '2' },
    ])
    assert.equal(await sandbox.files.read('/tmp/a/two'), '2')
    assert(await sandbox.files.makeDir('/tmp/a/deep'))
    assert(!(await sandbox.files.makeDir('/tmp/a/deep')))
    const listed = await sandbox.files.list('/tmp/a')
    assert.deepEqual(
      listed.map(({ name, type }) => [name, type]),
      [['deep', FileType.DIR], ['one', FileType.FILE], ['two', FileType.FILE]],
    )
    const one = await sandbox.files.getInfo('/tmp/a/one')
    assert.deepEqual([one.size, one.owner, one.permissions], [1, 'user', '-rw-r--r--'])
    await sandbox.files.rename('/tmp/a/two', '/tmp/b/three')
    assert(!(await sandbox.files.exists('/tmp/a/two')))
    await sandbox.files.remove('/tmp/a')
    assert(!(await sandbox.files.exists('/tmp/a')))
    await assert.rejects(sandbox.files.read('/missing'), NotFoundError)
    const signed = await (await fetch(await sandbox.downloadUrl('/tmp/b/three'))).text()
    assert.equal(signed, '2')
    const wrong = await fetch((await sandbox.downloadUrl('/tmp/b/three')).slice(0, -1))
    assert.equal(wrong.status, 401)
  },

  async watches(sandbox) {
    await sandbox.files.makeDir('watched/below')
    const seen = []
    const handle = await sandbox.files.watchDir('watched', (event) => void seen.push(event), {
      recursive: true,
    })
    await sandbox.files.write('watched/below/file', 'text')
    await eventually('events', () => seen.some(({ name, type }) => {
      return name === 'below/file' && type === 'write'
    }))
    await handle.stop()
  },

  async pauses(sandbox) {
    const line = 'exec 3> /tmp/kept; read line; echo $line >&3; echo still here'
    const handle = await sandbox.commands.run(line, { background: true, stdin: true })
    // It loses its connection.
    handle.wait().catch(() => {})
    assert(await sandbox.pause())
    assert(!(await sandbox.isRunning()))
    await sandbox.connect()
    const again = await sandbox.commands.connect(handle.pid)
    await sandbox.commands.sendStdin(handle.pid, 'after\n')
    assert.equal((await again.wait()).stdout, 'still here\n')
    assert.equal(await sandbox.files.read('/tmp/kept'), 'after\n')
  },

  async snapshots(sandbox) {
    await sandbox.files.write('/tmp/state', 'before')
    const { snapshotId } = await sandbox.createSnapshot()
    await sandbox.files.write('/tmp/state', 'after')
    const made = await Sandbox.create(snapshotId)
    assert.equal(await made.files.read('/tmp/state'), 'before')
    assert(await made.kill())
    const known = await Sandbox.listSnapshots().nextItems()
    assert(known.some((snapshot) => snapshot.snapshotId === snapshotId))
    assert(await Sandbox.deleteSnapshot(snapshotId))
  },

  async lists(sandbox) {
    const info = await sandbox.getInfo()
    assert.deepEqual(info.metadata, sandbox.ownMetadata)
    const found = await Sandbox.list({ query: { metadata: sandbox.ownMetadata } }).nextItems()
    assert.deepEqual(found.map(({ sandboxId }) => sandboxId), [sandbox.sandboxId])
    const more = await Sandbox.create()
    const ids = []
    const pages = Sandbox.list({ limit: 1 })
    while (pages.hasNext) ids.push(...(await pages.nextItems()).map(({ sandboxId }) => sandboxId))
    assert(ids.includes(more.sandboxId) && ids.includes(sandbox.sandboxId))
    assert.equal(new Set(ids).size, ids.length)
    await more.kill()
    const [metrics] = await sandbox.getMetrics()
    assert(metrics.memTotal > metrics.memUsed)
  },

  async refusals() {
    await assert.rejects(Sandbox.create('unknown-template'), /unknown-template/)
    await assert.rejects(Sandbox.connect('unknownsandbox'), NotFoundError)
    await assert.rejects(Sandbox.create({ mcp: { time: {} } }))
    const brief = await Sandbox.create({ timeoutMs: 60_000 })
    await brief.setTimeout(1000)
    await eventually('the end of its time', async () => !(await brief.isRunning()))
  },
}

const begun = Date.now()
const metadata = { kind: `a b&c/${randomBytes(8).toString('hex')}` }
const sandbox = await Sandbox.create({ timeoutMs: 1_200_000, metadata, envs: { SET: 'a' } })
sandbox.ownMetadata = metadata
for (const [name, check] of Object.entries(checks)) {
  await check(sandbox)
  console.log(`${((Date.now() - begun) / 1000).toFixed(1)} s  ${name}`)
}
assert(await sandbox.kill())
process.exit(0)
