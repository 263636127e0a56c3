# shellcheck shell=bash
# What the bench scripts share, on top of tools/lib.sh. Source it after `set -euo pipefail`.

# shellcheck source=tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tools/lib.sh"

# Processes to be ended with the script, in this order.
servers=()

# Installs and builds what is needed, and makes the directory $work, which goes with the script and holds all state.
begin_bench() {
    ensure build_needs
    ensure test_needs
    ensure_rust
    build
    export PATH="$CARGO_TARGET_DIR/release:$PATH"
    work=$(mktemp -d "${WORK_DIR:-/var/tmp}/varve-bench.XXXXXX")
    trap cleanup EXIT
    export VARVE_STATE="$work/state" VARVE_CONTROL="$work/control.sock" XDG_CONFIG_HOME="$work/config"
}

# Ends what was started and removes the directory $work.
cleanup() {
    local server
    for server in "${servers[@]}"; do
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    done
    rm -rf "$work"
}

# Starts a MinIO with an empty bucket named bench in $work/minio, its log in the directory $1, and says to everything how it is reached.
start_minio() {
    local port
    mkdir -p "$work/minio"
    export MINIO_ROOT_USER=varve-bench MINIO_ROOT_PASSWORD=varve-bench-secret
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    "$repository/tools/minio" path >/dev/null
    "$repository/tools/minio" run "$work/minio" "$port" >"$1/minio.log" 2>&1 &
    minio=$!
    servers=("$minio")
    export AWS_ENDPOINT_URL="http://127.0.0.1:$port" AWS_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
    export AWS_ACCESS_KEY_ID=$MINIO_ROOT_USER AWS_SECRET_ACCESS_KEY=$MINIO_ROOT_PASSWORD
    until curl --silent --fail "$AWS_ENDPOINT_URL/minio/health/ready" >/dev/null; do
        kill -0 "$minio" 2>/dev/null || fail "MinIO does not start: see $1/minio.log"
        sleep 0.1
    done
    s3 --request PUT "$AWS_ENDPOINT_URL/bench"
}

# A signed request to MinIO by curl.
s3() { curl --silent --show-error --no-progress-meter --fail --aws-sigv4 "aws:amz:$AWS_REGION:s3" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$@"; }

# Starts a varved that has nothing local and serves the store $VARVE_STORE on the socket $work/varve.sock. $1: file its log is added to; the
# rest: its options. It is put in front of the servers: it must detach before MinIO goes.
start_varved() {
    local log=$1
    shift
    rm -rf "$work/state" "$work/varve.sock"
    varved --nbd-unix "$work/varve.sock" "$@" 2>>"$log" &
    varved=$!
    servers=("$varved" "${servers[@]}")
    await_socket "$work/varve.sock"
}

# Ends the varved that was started last.
stop_varved() {
    kill "$varved"
    wait "$varved"
    servers=("${servers[@]:1}")
}

# Creates a volume named $1 of size $2, with further options, and prints its id.
new_volume() { varve volumes create "$1" --size "$2" "${@:3}" | grep ID | awk '{ print $2 }'; }

# The address of the volume $1 for fio.
nbd_uri() { printf 'nbd+unix:///%s?socket=%s' "$1" "$work/varve.sock"; }

# Waits until a Unix socket is there.
await_socket() {
    local tries=600
    until [ -S "$1" ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "nothing listens on $1"
        sleep 0.1
    done
}

# Says what was measured on what.
describe_machine() {
    date -u +%FT%TZ
    git -C "$repository" describe --always --dirty
    uname -srm
    grep -m 1 'model name' /proc/cpuinfo || true
    awk -v cores="$(nproc)" '/^MemTotal/ { printf "cores %s, memory %.0f GiB\n", cores, $2 / 1048576 }' /proc/meminfo
    df -hT "$work" | awk 'NR == 2 { print "file system " $2 }'
}

# Ends when the process $1 does; a line a second: Unix seconds, high-water mark and resident memory in KiB.
sample_memory() {
    printf 'unix_seconds high_water_kib resident_kib\n'
    while kill -0 "$1" 2>/dev/null; do
        awk -v at="$(date +%s)" '/^VmRSS|^VmHWM/ { line = line " " $2 } END { print at line }' "/proc/$1/status" 2>/dev/null || return 0
        sleep 1
    done
}
