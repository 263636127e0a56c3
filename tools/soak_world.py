"""What the long run works with: its surroundings, MinIO, hosts with their daemons, and QEMU's reconnecting client."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import nbd

MIB = 1 << 20
MEMORY_MIB, TRANSFER_MIB = 64, 128
# What the promise allows beyond the budgets, and what a daemon with some volumes and connections needs of descriptors.
MEMORY_LIMIT_MIB = MEMORY_MIB + TRANSFER_MIB + 128
DESCRIPTORS_LIMIT = 400
PATIENCE = 180
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "varve-test", "AWS_SECRET_ACCESS_KEY": "varve-test-secret", "AWS_REGION": "us-east-1",
               "AWS_EC2_METADATA_DISABLED": "true"}


class Run:
    """What all workers share."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.work = tempfile.mkdtemp(prefix="varve-soak-")
        self.end = time.monotonic() + arguments.minutes * 60
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.problems = []
        self.counts = {}
        self.cleanups = []

    def problem(self, text):
        with self.lock:
            self.problems.append(text)
        say("PROBLEM: " + text)
        self.stopped.set()

    def count(self, name, by=1):
        with self.lock:
            self.counts[name] = self.counts.get(name, 0) + by

    def going_on(self):
        return not self.stopped.is_set() and time.monotonic() < self.end

    def wait(self, seconds):
        self.stopped.wait(max(0, min(seconds, self.end - time.monotonic())))


def say(text):
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def until(what, is_so, patience=PATIENCE):
    end = time.monotonic() + patience
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {patience} s in vain: {what}")
        time.sleep(0.02)


def command(*words, **options):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}".strip())
    return done.stdout


def id_in(text):
    return next(line.split()[1] for line in text.splitlines() if "ID" in line)


class Minio:
    def __init__(self, run):
        self.run, self.lock = run, threading.Lock()
        self.data = os.path.join(run.work, "minio")
        os.makedirs(os.path.join(self.data, "soak"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = open(os.path.join(run.work, "minio.log"), "ab")
        run.cleanups.append(lambda: (self.server.send_signal(signal.SIGCONT), self.server.kill(), self.server.wait()))
        self.start()

    def start(self):
        environment = dict(os.environ, MINIO_ROOT_USER=CREDENTIALS["AWS_ACCESS_KEY_ID"], MINIO_ROOT_PASSWORD=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
                           MINIO_BROWSER="off", MINIO_UPDATE="off", HOME=self.run.work)
        self.server = subprocess.Popen(
            [self.run.arguments.minio, "server", "--quiet", "--address", f"127.0.0.1:{self.port}", self.data],
            env=environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)
        until("MinIO listens", self.answers)

    def answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"GET /minio/health/cluster HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return b" 200 " in connection.recv(64)
        except OSError:
            return False

    def away(self, seconds, kill):
        with self.lock:
            if kill:
                self.server.kill()
                self.server.wait()
            else:
                self.server.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            if kill:
                self.start()
            else:
                self.server.send_signal(signal.SIGCONT)


class Host:
    """A machine: its state, its sockets, its daemon, which can die at any time and is started again."""

    def __init__(self, run, name, minio):
        self.run, self.name, self.lock = run, name, threading.RLock()
        folder = os.path.join(run.work, name)
        os.makedirs(folder)
        self.nbd = os.path.join(folder, "nbd.sock")
        self.environment = dict(os.environ, AWS_ENDPOINT_URL=f"http://127.0.0.1:{minio.port}", VARVE_STORE="s3://soak/disks",
                                VARVE_STATE=os.path.join(folder, "state"), VARVE_CONTROL=os.path.join(folder, "control.sock"),
                                XDG_CONFIG_HOME=os.path.join(run.work, "config"), **CREDENTIALS)
        self.log = open(os.path.join(folder, "varved.log"), "ab")
        self.daemon = None
        self.rss_max = self.descriptors_max = 0
        self.kinds = {}
        run.cleanups.append(self.clean)

    def clean(self):
        if self.daemon and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGCONT)
            self.daemon.kill()
            self.daemon.wait()

    def launch(self):
        self.daemon = subprocess.Popen(
            [os.path.join(self.run.arguments.binaries, "varved"), "--nbd-unix", self.nbd, "--log-size", "512MiB", "--cache-size", "512MiB",
             "--memory-size", f"{MEMORY_MIB}MiB", "--transfer-size", f"{TRANSFER_MIB}MiB", "--segment-age", "1s"],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)

    def start(self):
        """Starts the daemon. If the store is away, it ends and says so: then it is started again, as a supervisor does."""
        with self.lock:
            self.launch()
            end = time.monotonic() + PATIENCE
            while not self.try_varve("status")[0]:
                if time.monotonic() > end:
                    raise TimeoutError(f"varved of host {self.name} does not answer: see {self.log.name}")
                if self.daemon.poll() is not None:
                    time.sleep(0.5)
                    self.launch()
                time.sleep(0.02)

    def kill(self):
        with self.lock:
            self.daemon.kill()
            self.daemon.wait()
            self.start()

    def stop(self):
        with self.lock:
            self.daemon.terminate()
            if self.daemon.wait(PATIENCE) != 0:
                raise RuntimeError(f"varved of host {self.name} stopped with {self.daemon.returncode}")

    def try_varve(self, *words):
        binary = os.path.join(self.run.arguments.binaries, "varve")
        done = subprocess.run([binary, *words], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=PATIENCE)
        return done.returncode == 0, done.stdout

    def varve(self, *words):
        """Tries until it succeeds: daemons die and the store goes away all the time."""
        return self.persist(words)

    def id_of(self, *words):
        return id_in(self.varve(*words))

    def of_owner(self, volume, *words):
        """A command that only the owner can do: a daemon that was killed takes the volume up again first."""
        return self.persist(("volumes", "attach", volume), words)

    def persist(self, *commands):
        """Tries the commands, in order, until all succeed. Returns what the last one said."""
        end = time.monotonic() + PATIENCE
        while True:
            for words in commands:
                done, said = self.try_varve(*words)
                if not done:
                    break
            else:
                return said
            if time.monotonic() > end:
                raise RuntimeError(f"varve {' '.join(commands[-1])} on host {self.name}: {said.strip()}")
            time.sleep(0.3)

    def connect(self, export):
        end = time.monotonic() + PATIENCE
        while True:
            client = nbd.NBD()
            client.set_export_name(export)
            try:
                client.connect_unix(self.nbd)
                return client
            except nbd.Error as error:
                if time.monotonic() > end:
                    raise RuntimeError(f"cannot open {export} on host {self.name}: {error}") from error
                time.sleep(0.1)

    def measure(self):
        pid = self.daemon.pid if self.daemon else 0
        try:
            with open(f"/proc/{pid}/status") as status:
                rss = next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmRSS:"))
            names = os.listdir(f"/proc/{pid}/fd")
            descriptors = len(names)
            if descriptors > self.descriptors_max:
                self.kinds = kinds(pid, names)
        except (OSError, StopIteration):
            return
        self.rss_max, self.descriptors_max = max(self.rss_max, rss), max(self.descriptors_max, descriptors)
        if rss > MEMORY_LIMIT_MIB:
            self.run.problem(f"varved of host {self.name} has {rss} MiB of memory, of at most {MEMORY_LIMIT_MIB}")
        if descriptors > DESCRIPTORS_LIMIT:
            self.run.problem(f"varved of host {self.name} has {descriptors} descriptors open")


def kinds(pid, names):
    """How many descriptors are open on what: sockets, or files by their folder."""
    found = {}
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        kind = os.path.basename(os.path.dirname(target)) if target.startswith("/") else target.split(":")[0]
        found[kind] = found.get(kind, 0) + 1
    return found


def read_all(client):
    return b"".join(client.pread(MIB, offset) for offset in range(0, client.get_size(), MIB))


class Bridge:
    """QEMU's reconnecting client in front of an export: what is behind it never sees a daemon die."""

    def __init__(self, run, host, volume):
        own = os.path.join(run.work, volume + ".sock")
        self.server = subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev",
             f"driver=nbd,node-name=disk,server.type=unix,server.path={host.nbd},export={volume},reconnect-delay=300,discard=unmap",
             "--nbd-server", f"addr.type=unix,addr.path={own},max-connections=16", "--export", f"type=nbd,id=e,node-name=disk,name={volume},writable=on"],
            stdin=subprocess.DEVNULL, start_new_session=True)
        self.uri = f"nbd+unix:///{volume}?socket={own}"
        run.cleanups.append(lambda: (self.server.kill(), self.server.wait()))
        until("qemu-storage-daemon listens", lambda: os.path.exists(own))
