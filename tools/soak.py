"""The long run that tools/soak starts: load, faults and judgement. See there.

Every worker is a thread that goes on until the time is up; whatever it finds wrong is noted and ends the run. Everything is started
here, on Unix sockets and 127.0.0.1, and ended by its process id.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback

import nbd

from soak_world import DESCRIPTORS_LIMIT, MEMORY_LIMIT_MIB, MIB, PATIENCE, Bridge, Host, Minio, Run, command, id_in, read_all, say, until

BLOCK = 4096
MOVING_BYTES = 16 * MIB


class Moving:
    """A volume that goes to and fro. Writes are made one after the other, so that the disk is always what the first k of them made."""

    def __init__(self, run, hosts):
        self.run, self.hosts = run, hosts
        self.volume = hosts[0].id_of("volumes", "create", "moving", "--size", "16MiB")
        self.chance = random.Random(run.arguments.seed + 1)
        self.written, self.acknowledged, self.owner = [], 0, 0
        self.stamp = 0

    def content(self, stamp):
        return random.Random(stamp).randbytes(BLOCK // 2) + stamp.to_bytes(8, "little") * (BLOCK // 16) if stamp else bytes(BLOCK)

    def write(self, count):
        """Writes until so many are acknowledged. A daemon that dies meanwhile loses none of them."""
        client, target = self.hosts[self.owner].connect(self.volume), self.acknowledged + count
        while self.acknowledged < target and not self.run.stopped.is_set():
            self.stamp += 1
            self.written.append((self.stamp, self.chance.randrange(MOVING_BYTES // BLOCK)))
            try:
                client.pwrite(self.content(self.written[-1][0]), self.written[-1][1] * BLOCK)
                self.acknowledged = len(self.written)
            except nbd.Error:
                client = self.hosts[self.owner].connect(self.volume)
                self.judge(read_all(client), self.acknowledged)
                self.run.count("deaths of the owner in the middle of a write")
        self.run.count("writes to the volume that moves", count)

    def model(self, count):
        disk = {}
        for stamp, block in self.written[:count]:
            disk[block] = stamp
        return disk

    def judge(self, disk, floor):
        """The disk is what the first k writes made, k at least floor; the later ones never were."""
        held = {}
        for block in range(MOVING_BYTES // BLOCK):
            content = disk[block * BLOCK:(block + 1) * BLOCK]
            stamp = int.from_bytes(content[-8:], "little")
            if content != self.content(stamp):
                raise AssertionError(f"block {block} has bytes that nobody wrote")
            if stamp:
                held[block] = stamp
        newest = max(held.values(), default=0)
        position = {stamp: index + 1 for index, (stamp, _) in enumerate(self.written)}
        count = position.get(newest, 0)
        if newest and not count:
            raise AssertionError(f"write {newest} is back, which was lost with its host")
        if count < floor:
            raise AssertionError(f"the disk holds {count} writes, of {floor} that must be there")
        if held != self.model(count):
            raise AssertionError(f"the disk is not what its first {count} writes made")
        lost = max(0, self.acknowledged - count)
        del self.written[count:]
        self.acknowledged = count
        self.run.count("times that the moving volume was read and judged")
        return lost

    def read(self):
        while True:
            try:
                return read_all(self.hosts[self.owner].connect(self.volume))
            except nbd.Error:
                self.run.count("reads begun again after a death")

    def copies(self):
        """A snapshot and a fork hold what was there, also after more was written."""
        host = self.hosts[self.owner]
        before = self.read()
        self.judge(before, self.acknowledged)
        snapshot = id_in(host.of_owner(self.volume, "volumes", "snapshots", "create", self.volume))
        fork = id_in(host.of_owner(self.volume, "volumes", "fork", self.volume))
        self.write(200)
        for copy in (snapshot, fork):
            while True:
                try:
                    if read_all(host.connect(copy)) != before:
                        raise AssertionError(f"{copy} is not the volume as it was")
                    break
                except nbd.Error:
                    continue
        host.varve("check", snapshot)
        host.of_owner(fork, "volumes", "detach", fork)
        host.varve("volumes", "destroy", fork, "--yes")
        host.varve("volumes", "snapshots", "destroy", snapshot, "--yes")
        self.run.count("snapshots and forks compared", 2)

    def move(self):
        old, new = self.hosts[self.owner], self.hosts[1 - self.owner]
        how = self.chance.choice(["detached", "killed", "paused"])
        floor = self.acknowledged
        if how == "detached":
            old.of_owner(self.volume, "volumes", "detach", self.volume)
            new.varve("volumes", "attach", self.volume)
        else:
            old.of_owner(self.volume, "volumes", "sync", self.volume)
            self.write(300)
            if how == "killed":
                with old.lock:
                    old.daemon.kill()
                    old.daemon.wait()
                    new.varve("volumes", "attach", self.volume, "--takeover")
                    old.start()
            else:
                with old.lock:
                    old.daemon.send_signal(signal.SIGSTOP)
                    try:
                        new.varve("volumes", "attach", self.volume, "--takeover")
                    finally:
                        old.daemon.send_signal(signal.SIGCONT)
        self.owner = 1 - self.owner
        if how == "detached":
            floor = self.acknowledged
        lost = self.judge(self.read(), floor)
        self.run.count(f"moves from an owner that was {how}")
        self.run.count("acknowledged writes that went with their host, after its last sync", lost)

    def work(self):
        while self.run.going_on():
            self.write(self.chance.randrange(200, 2000))
            self.chance.choice([self.copies, self.move])()

    def finish(self):
        self.write(100)
        self.judge(self.read(), self.acknowledged)
        self.hosts[self.owner].of_owner(self.volume, "volumes", "detach", self.volume)


class Files:
    """Files on ext4 behind a bridge, compared with what was written to them."""

    def __init__(self, run, host):
        self.run, self.chance = run, random.Random(run.arguments.seed + 2)
        self.host = host
        self.volume = host.id_of("volumes", "create", "files", "--size", "1GiB")
        self.folder, self.mount = os.path.join(run.work, "fuse"), os.path.join(run.work, "mount")
        os.makedirs(self.folder)
        os.makedirs(self.mount)
        self.disk = os.path.join(self.folder, "disk")
        self.bridge = Bridge(run, host, self.volume)
        self.attach()
        command("mkfs.ext4", "-qF", self.loop)
        command("mount", self.loop, self.mount)
        self.model = {}

    def attach(self):
        open(self.disk, "a").close()
        self.fuse = subprocess.Popen(["nbdfuse", self.disk, self.bridge.uri], stdin=subprocess.DEVNULL, start_new_session=True)
        until("nbdfuse shows the disk", lambda: os.path.getsize(self.disk) > 0)
        self.loop = command("losetup", "--find", "--show", self.disk).strip()
        self.run.cleanups.append(self.clean)

    def clean(self):
        for words in (["umount", "-l", self.mount], ["losetup", "--detach", self.loop], ["fusermount3", "-uz", self.disk]):
            subprocess.run(["timeout", "20", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        self.fuse.kill()
        self.fuse.wait()

    def path(self, name):
        return os.path.join(self.mount, name)

    def compare(self, name):
        descriptor = os.open(self.path(name), os.O_RDONLY)
        try:
            # From the disk, not from the page cache.
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            found = b"".join(iter(lambda: os.read(descriptor, MIB), b""))
        finally:
            os.close(descriptor)
        if found != bytes(self.model[name]):
            raise AssertionError(f"file {name} is not what was written to it")
        self.run.count("files compared")

    def change(self):
        name, deed = f"f{self.chance.randrange(150)}", self.chance.randrange(10)
        content = self.model.get(name)
        if content is None:
            content = self.model[name] = bytearray(self.chance.randbytes(self.chance.randrange(1, MIB)))
            with open(self.path(name), "wb") as file:
                file.write(content)
        elif deed < 5:
            at = self.chance.randrange(len(content) + 1)
            data = self.chance.randbytes(self.chance.randrange(1, 100_000))
            content[at:at + len(data)] = data
            with open(self.path(name), "r+b") as file:
                file.seek(at)
                file.write(data)
                if deed == 0:
                    os.fsync(file.fileno())
        elif deed == 5:
            os.unlink(self.path(name))
            del self.model[name]
        elif deed == 6:
            length = self.chance.randrange(len(content) + 1)
            del content[length:]
            os.truncate(self.path(name), length)
        elif deed == 7:
            other = f"f{self.chance.randrange(150)}"
            os.rename(self.path(name), self.path(other))
            self.model[other] = self.model.pop(name)
        else:
            self.compare(name)
        self.run.count("changes to files")

    def work(self):
        while self.run.going_on():
            self.change()
            if self.chance.randrange(500) == 0:
                command("fstrim", self.mount)

    def finish(self):
        command("umount", self.mount)
        command("e2fsck", "-fn", self.loop)
        command("mount", self.loop, self.mount)
        if sorted(os.listdir(self.mount)) != sorted([*self.model, "lost+found"]):
            raise AssertionError("the names of the files are not those that were made")
        for name in self.model:
            self.compare(name)
        command("umount", self.mount)
        command("losetup", "--detach", self.loop)
        command("fusermount3", "-u", self.disk)
        self.fuse.wait(PATIENCE)


class Fio:
    """Random writes of all lengths, verified by fio, one run after the other."""

    def __init__(self, run, host):
        self.run, self.host = run, host
        self.volume = host.id_of("volumes", "create", "fio", "--size", "256MiB")
        self.bridge = Bridge(run, host, self.volume)

    def work(self):
        while self.run.going_on():
            # A run that is cut short at the end says nothing: each has its amount of data, and not a time.
            done = subprocess.run(
                ["fio", "--name=soak", "--ioengine=nbd", f"--uri={self.bridge.uri}", "--rw=randwrite", "--bsrange=512-128k", "--blockalign=512",
                 "--size=64m", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--fsync=64", f"--randseed={self.run.counts.get('runs of fio', 0)}"],
                cwd=self.run.work, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800)
            if done.returncode != 0:
                raise AssertionError("fio: " + done.stdout)
            self.run.count("runs of fio, 64 MiB each, verified")

    def finish(self):
        pass


class Chaos:
    """Deaths of daemons, and a store that goes away."""

    def __init__(self, run, hosts, minio):
        self.run, self.hosts, self.minio = run, hosts, minio
        self.chance = random.Random(run.arguments.seed + 3)

    def work(self):
        while self.run.going_on():
            self.run.wait(self.chance.uniform(2, 8))
            deed = self.chance.randrange(4)
            if deed < 2:
                self.hosts[deed].kill()
                self.run.count("kills of a daemon")
            else:
                self.minio.away(self.chance.uniform(0.5, 6), kill=deed == 2)
                self.run.count("times that MinIO was " + ("killed" if deed == 2 else "paused"))


def watch(run, hosts):
    while not run.stopped.is_set():
        for host in hosts:
            host.measure()
        run.stopped.wait(0.5)


def guarded(run, what, work):
    try:
        work()
    except Exception as error:  # Whatever it is, the run ends with it and says so.
        traceback.print_exc()
        run.problem(f"{what}: {type(error).__name__}: {error}")


def soak(run):
    minio = Minio(run)
    hosts = [Host(run, name, minio) for name in "ab"]
    # The store is made with its first volume.
    hosts[0].varve("volumes", "create", "first", "--size", "1MiB")
    for host in hosts:
        host.start()
    workers = [Moving(run, hosts), Files(run, hosts[0]), Fio(run, hosts[1])]
    threads = [threading.Thread(target=guarded, args=(run, type(worker).__name__, worker.work)) for worker in
               [*workers, Chaos(run, hosts, minio)]]
    watcher = threading.Thread(target=watch, args=(run, hosts), daemon=True)
    for thread in [*threads, watcher]:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in workers:
        if not run.problems:
            guarded(run, type(worker).__name__, worker.finish)
    if run.problems:
        return hosts
    for worker in workers[1:]:
        worker.bridge.server.kill()
        worker.bridge.server.wait()
    for host in hosts:
        host.stop()
    for worker in workers:
        hosts[0].varve("check", worker.volume)
    run.count("volumes checked at the end", len(workers))
    return hosts


def summary(run, hosts, began):
    print(f"soak of {(time.monotonic() - began) / 60:.1f} minutes, seed {run.arguments.seed}")
    for name, count in sorted(run.counts.items()):
        print(f"{count:10} {name}")
    for host in hosts:
        print(f"{host.rss_max:10} MiB of memory at most, host {host.name} (of {MEMORY_LIMIT_MIB})")
        print(f"{host.descriptors_max:10} descriptors at most, host {host.name} (of {DESCRIPTORS_LIMIT}): {host.kinds}")
    for problem in run.problems:
        print("PROBLEM:", problem)
    print("FAILED; everything is left in " + run.work if run.problems else "all was well")


def main():
    parser = argparse.ArgumentParser(prog="tools/soak")
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--binaries", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--minio", required=True, help=argparse.SUPPRESS)
    run, began, hosts = Run(parser.parse_args()), time.monotonic(), []
    try:
        guarded(run, "soak", lambda: hosts.extend(soak(run)))
    finally:
        run.stopped.set()
        for cleanup in reversed(run.cleanups):
            try:
                cleanup()
            except Exception as error:
                say(f"cleaning up: {error}")
    summary(run, hosts, began)
    if not run.problems:
        shutil.rmtree(run.work)
    sys.exit(1 if run.problems else 0)


if __name__ == "__main__":
    main()
