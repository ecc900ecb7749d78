#!/bin/sh
# Makes this machine able to build and run exclfs, and installs it into .venv. Run by the Makefile; safe to repeat.
#     scripts/setup.sh [dev]      dev: also what the tests and the checks need
set -eu
cd "$(dirname "$0")/.."
with=${1:-}
python=${PYTHON:-python3}

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# --- the system: what is missing is found by trying, so that nobody is asked for a password without need ----------
compiles() { printf '%s\n' "$1" | gcc -fsyntax-only -x c - >/dev/null 2>&1; }

missing_packages() {
    have fusermount3 || echo fuse3
    have pkg-config || echo pkg-config
    have pkg-config && pkg-config --exists fuse3 || echo libfuse3-dev
    have gcc || echo gcc
    have gcc && compiles '#include <stdio.h>' || echo libc6-dev
    have getfattr || echo attr
    have setfacl || echo acl
    [ "$with" != dev ] || have rsync || echo rsync
    [ "$with" != dev ] || have git || echo git
    [ "$with" != dev ] || have fuser || echo psmisc
    [ "$with" != dev ] || have systemd-tmpfiles || echo systemd-standalone-tmpfiles
    [ "$with" != dev ] || have mkfs.ext4 || echo e2fsprogs
    [ "$with" != dev ] || have fio || echo fio
    [ "$with" != dev ] || have stress-ng || echo stress-ng
    [ "$with" != dev ] || have mkfs.xfs || echo xfsprogs
    [ "$with" != dev ] || have mkfs.btrfs || echo btrfs-progs
    if have "$python"; then
        "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || echo python3-venv
        "$python" -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' \
            >/dev/null 2>&1 || echo python3-dev
    else
        echo python3 python3-venv python3-dev
    fi
}

install_packages() {
    have apt-get || die "please install what these Debian packages contain, then run make again: $*"
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        have sudo || die "these packages are missing, and there is no sudo; as root: apt-get install $*"
        as_root='sudo'
    fi
    say "installing $* ${as_root:+(with sudo)}"
    # Index files older than the mirror's make apt-get install fail: they are refreshed first.
    $as_root apt-get -qq update
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" >/dev/null
}

missing=$(missing_packages | tr '\n' ' ')
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086 # one word a package
    install_packages $missing
    missing=$(missing_packages | tr '\n' ' ')
    [ -z "$missing" ] || die "still missing after the installation: $missing"
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "exclfs needs Python 3.11 or later; $python is $("$python" -V 2>&1). Name another: make PYTHON=python3.12 …"

# --- the virtual environment --------------------------------------------------------------------------------------
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "making .venv with $("$python" -V 2>&1)"
    rm -rf .venv
    "$python" -m venv .venv
fi
# pip has much to say when all is well; it is shown only if something is not.
pip() {
    .venv/bin/python -m pip --disable-pip-version-check "$@" >.venv/setup.log 2>&1 || {
        cat .venv/setup.log >&2
        die "pip $* failed; the above is .venv/setup.log"
    }
}
# --group (PEP 735) came with pip 25.1.
.venv/bin/python -c 'import pip; raise SystemExit(tuple(map(int, pip.__version__.split(".")[:2])) < (25, 1))' ||
    pip install --upgrade 'pip>=25.1'
say "building exclfs and installing it into .venv"
if [ "$with" = dev ]; then
    pip install --editable . --group dev
else
    pip install --editable .
fi
[ -c /dev/fuse ] || say "note: there is no /dev/fuse here, so nothing can be mounted (modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
