# shellcheck shell=bash
# Shell functions shared by tools/test, tools/quickstart and benches/: find what is missing, install it, build.
# Source it after `set -euo pipefail`.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VARVE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/varve}
export CARGO_TARGET_DIR="$cache/target"
CARGO_BUILD_JOBS=${CARGO_BUILD_JOBS:-$(nproc)}
export CARGO_BUILD_JOBS
# mkfs, losetup and their like lie in sbin, which is not on everybody's path.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "$(basename "$0"): $*"
    exit 1
}

# Runs a command as root: as we are, or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "needs root to run '$*', and there is no sudo: run it as root once, then start again"
    fi
}

# What building needs. A line: the Debian package, then the command that proves it works.
build_needs() {
    cat <<'NEEDS'
g++            g++ --version
make           make --version
cmake          cmake --version
pkg-config     pkg-config --version
clang          clang --version
libclang-dev   find_libclang
git            git --version
curl           curl --version
NEEDS
}

# What the tests and benches need besides. Debian 12 puts nbdinfo, nbdcopy and nbdfuse into libnbd-bin.
test_needs() {
    cat <<'NEEDS'
fio                  fio --version
nbdkit               nbdkit --version
libnbd-bin           nbdinfo --version
libnbd-bin           nbdcopy --version
libnbd-bin           nbdfuse --version
nbd-client           nbd-client --help
python3              /usr/bin/python3 --version
python3-libnbd       /usr/bin/python3 -c import\ nbd
qemu-utils           qemu-img --version
qemu-utils           qemu-io --version
qemu-utils           qemu-nbd --version
qemu-system-common   qemu-storage-daemon --version
qemu-system-x86      qemu-system-x86_64 --version
busybox-static       busybox --help
cpio                 cpio --version
kmod                 depmod --version
xz-utils             xz --version
dpkg                 dpkg --version
fuse3                fusermount3 --version
e2fsprogs            mkfs.ext4 -V
e2fsprogs            lsattr -d /
openssl              openssl version
xfsprogs             mkfs.xfs -V
btrfs-progs          mkfs.btrfs --version
sqlite3              sqlite3 --version
postgresql           ls /usr/lib/postgresql/*/bin/pg_amcheck
postgresql-contrib   ls /usr/share/postgresql/*/extension/amcheck.control
ccache               ccache --version
strace               strace --version
systemd              systemd-analyze --version
faketime             faketime --version
procps               ps --version
mount                losetup --version
util-linux           fstrim --version
NEEDS
}

find_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] || ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so*
}

# Runs the proofs in the list on standard input, and installs the packages of those that fail.
install_missing() {
    local package proof missing=()
    while read -r package proof; do
        # shellcheck disable=SC2086 # the proof is a command with its arguments
        eval "$proof" >/dev/null 2>&1 </dev/null || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    command -v apt-get >/dev/null || fail "missing: ${missing[*]}. Without apt-get, install them by hand (Debian's names) and start again"
    say "installing: ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}" >&2
}

# Installs what a list names, then proves that everything works now.
ensure() {
    local list=$1 package proof
    install_missing < <("$list")
    while read -r package proof; do
        # shellcheck disable=SC2086
        eval "$proof" >/dev/null 2>&1 </dev/null || fail "'$proof' fails although package $package is installed"
    done < <("$list")
}

# Rust, of the version that Cargo.toml asks for.
ensure_rust() {
    [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null || fail "no Rust: install it from https://rustup.rs and start again"
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repository/Cargo.toml" | head -n 1)
    have=$(rustc --version | awk '{ print $2 }')
    if [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]; then
        fail "Rust $have is too old, $wanted or newer is needed: rustup update stable"
    fi
}

# The parts of Rust that only checking needs.
ensure_rust_checks() {
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return
    command -v rustup >/dev/null || fail "cargo fmt or cargo clippy is missing, and there is no rustup to add it"
    rustup component add rustfmt clippy >&2
}

# Builds both binaries. The first build takes long: RocksDB is compiled from source, once.
build() {
    [ -d "$CARGO_TARGET_DIR/release/build" ] || say "the first build compiles RocksDB, which takes 15 minutes or more on two cores; later ones take seconds"
    (cd "$repository" && cargo build --release --workspace --locked)
}
