#!/bin/sh
# Brings a machine to the point where the Makefile's targets work.
#
#   setup.sh packages demo|test|bench|lint    system programs: installed when that is possible, else named in one line
#   setup.sh venv run|dev                     .venv with `clr`, for running it or also for testing it; done once
#   setup.sh data                             the folders that the compose files mount, and a key where there is none
set -eu

cd -P "$(dirname "$0")/../.."
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf '%s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# A Python that is new enough, by name; nothing when there is none.
find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

# The Debian packages whose programs this machine lacks.
missing_packages() {
    # shellcheck disable=SC2016  # each line is a test for the shell below
    needed='
        python3          [ -n "$(find_python)" ]
        python3-venv     venv_works
        rsync            has rsync && has rrsync
        openssh-server   has sshd
        openssh-client   has ssh && has ssh-keygen && has ssh-keyscan
        caddy            has caddy
        qemu-utils       has qemu-img
        e2fsprogs        has mke2fs
        openssl          has openssl
        ca-certificates  [ -e /etc/ssl/certs/ca-certificates.crt ]'
    [ "$1" != test ] || needed="$needed
        prometheus       has prometheus && has promtool
        chromium         has chromium"
    # Only root can mount the small disks of the tests.
    [ "$1" != test ] || [ "$(id -u)" != 0 ] || needed="$needed
        xfsprogs         has mkfs.xfs
        btrfs-progs      has mkfs.btrfs
        sshfs            has sshfs
        ntfs-3g          has lowntfs-3g
        exfat-fuse       has mount.exfat-fuse
        exfatprogs       has mkfs.exfat"
    # Without root the disks are made of other files, and some cases are left out.
    [ "$1" != bench ] || needed="$needed
        zstd             has zstd"
    [ "$1" != bench ] || [ "$(id -u)" != 0 ] || needed="$needed
        mmdebstrap       has mmdebstrap
        nginx            has nginx
        wrk              has wrk
        iproute2         has ip"
    [ "$1" != lint ] || needed="$(printf '%s\n' "$needed" | grep python3)
        shellcheck       has shellcheck"
    printf '%s\n' "$needed" | while read -r package test; do
        [ -z "$package" ] || (eval "$test") || printf '%s ' "$package"
    done
}

has() { command -v "$1" >/dev/null 2>&1; }

venv_works() {
    python="$(find_python)"
    [ -n "$python" ] && "$python" -c 'import ensurepip, venv' 2>/dev/null
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

packages() {
    missing="$(missing_packages "$1")"
    missing="${missing% }"
    [ -n "$missing" ] || return 0
    remedy="These Debian packages are missing; install them first: apt-get install $missing"
    has apt-get || die "$remedy"
    as_root true 2>/dev/null || die "$remedy"
    say "Installing what this machine lacks: $missing"
    log="$(mktemp)"
    # shellcheck disable=SC2086  # one word per package
    if ! install_quietly $missing >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        die "$remedy (apt-get's output is in $log)"
    fi
    rm -f "$log"
    missing="$(missing_packages "$1")"
    [ -z "$missing" ] || die "Installed, and still not usable on this machine: $missing"
}

# Install packages, and leave no service behind that nobody asked for: neither running now nor at the next boot.
install_quietly() {
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'as_root rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM HUP
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    as_root apt-get -q update || say "apt-get update failed; going on with the package lists that are here"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@" || return 1
    for package in "$@"; do
        case "$package" in
            openssh-server) switch_off ssh.service ssh.socket ;;
            caddy) switch_off caddy.service ;;
            rsync) switch_off rsync.service ;;
            nginx) switch_off nginx.service ;;
            prometheus) switch_off prometheus.service ;;
        esac
    done
}

switch_off() {
    for unit in "$@"; do
        if has systemctl; then
            as_root systemctl disable --now "$unit" || true
        elif [ "${unit%.service}" != "$unit" ]; then
            as_root update-rc.d "${unit%.service}" disable || true
        fi
    done
}

venv() {
    stamp=".venv/.$1"
    if usable_venv && { current "$stamp" || current .venv/.dev; }; then
        return 0
    fi
    usable_venv || "$(find_python)" -m venv --clear .venv
    what=client
    [ "$1" = run ] || what='client[dev]'
    say "Installing $what into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$what"
    touch "$stamp"
}

# A .venv that was made here, not copied from somewhere else, by a Python that is still there.
usable_venv() {
    [ -x .venv/bin/python ] && [ -x .venv/bin/pip ] &&
        [ "$(.venv/bin/python -c 'import sys; print(sys.prefix)' 2>/dev/null)" = "$PWD/.venv" ] &&
        head -n 3 .venv/bin/pip | grep -qF "$PWD/.venv/"
}

current() { [ -n "$(find "$1" -newer client/pyproject.toml 2>/dev/null)" ]; }

# For both roles on this host. Nothing that is there is touched.
data() {
    for folder in server/data/ssh server/data/library server/data/hostkeys \
        client/data/ssh client/data/library client/data/certs client/data/caddy; do
        [ -d "$folder" ] || mkdir -p "$folder"
    done
    if ! ls client/data/ssh/id_* server/data/ssh/*.pub >/dev/null 2>&1; then
        ssh-keygen -q -t ed25519 -N '' -C this-host -f client/data/ssh/id_syncer
        mv client/data/ssh/id_syncer.pub server/data/ssh/this-host.pub
        say "Made a key: client/data/ssh/id_syncer"
    fi
    ls server/data/library/* >/dev/null 2>&1 || say "Put templates into server/data/library, one folder each"
}

case "${1-} ${2-}" in
    "data ") data ;;
    "packages demo" | "packages test" | "packages bench" | "packages lint") packages "$2" ;;
    "venv run" | "venv dev") venv "$2" ;;
    *) die "usage: setup.sh packages demo|test|bench|lint | venv run|dev | data" ;;
esac
