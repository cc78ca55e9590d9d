#!/bin/sh
# A container engine for the tests in tests/e2e, on a machine where none runs.
#
#   engine.sh start FILE    start Debian's dockerd unless an engine answers; FILE gets the pid of what was started
#   engine.sh stop FILE     end what FILE names, if anything
#   engine.sh compose2      print the path of a Compose v2, brought from Debian 13 into .cache/ where none is installed
set -eu

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
cache=$(cd "$(dirname "$0")/../.." && pwd)/.cache
mkdir -p "$cache"

say() { echo "engine: $*" >&2; }

answers() { timeout 20 docker version >/dev/null 2>&1; }

# Start dockerd with the given options and wait until it answers.
launch() {
    # A pid file of its own: the default one may name a process of an earlier boot
    setsid dockerd --pidfile "$cache/dockerd.pid" "$@" >"$cache/dockerd.log" 2>&1 </dev/null &
    pid=$!
    waited=0
    until answers; do
        waited=$((waited + 1))
        if ! kill -0 "$pid" 2>/dev/null || [ "$waited" -gt 60 ]; then
            end "$pid"
            return 1
        fi
        sleep 1
    done
    echo "$pid" >"$file"
    say "dockerd $* runs as pid $pid"
}

end() {
    kill "$1" 2>/dev/null || return 0
    waited=0
    while kill -0 "$1" 2>/dev/null && [ "$waited" -lt 35 ]; do
        waited=$((waited + 1))
        [ "$waited" -ne 30 ] || kill -9 "$1" 2>/dev/null || true
        sleep 1
    done
}

start() {
    if answers; then
        say 'an engine answers'
        return 0
    fi
    command -v dockerd >/dev/null || {
        say 'dockerd is missing: apt-get install docker.io'
        return 1
    }
    rm -f "$cache/dockerd.pid"
    # overlay2 where the file system allows it, else the driver that works on any
    launch || launch --storage-driver=vfs || {
        tail -n 20 "$cache/dockerd.log" >&2
        say "dockerd does not start; its log is $cache/dockerd.log"
        return 1
    }
}

stop() {
    [ -s "$file" ] || return 0
    read -r pid <"$file"
    rm -f "$file"
    case $(cat "/proc/$pid/comm" 2>/dev/null) in
        dockerd) end "$pid" && say "dockerd ended" ;;
    esac
}

# apt with a state of its own, so that the machine's package lists stay as they are and no root is needed
apt_of_trixie() {
    apt-get -qq -o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State="$state" \
        -o Dir::State::status="$state/status" -o Dir::Cache="$state" -o APT::Sandbox::User=root "$@" >&2
}

compose2() {
    for candidate in /usr/libexec/docker/cli-plugins/docker-compose /usr/lib/docker/cli-plugins/docker-compose \
        "$(command -v docker-compose)" "$cache/compose2"; do
        if [ -x "$candidate" ] && "$candidate" version --short 2>/dev/null | grep -q '^v*2'; then
            echo "$candidate"
            return 0
        fi
    done
    state=$(mktemp -d "$cache/apt.XXXXXX")
    trap 'rm -rf "$state"' EXIT
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    : >"$state/status"
    # shellcheck disable=SC2016  # apt expands this
    mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)}
    [ -n "$mirror" ] || {
        say 'apt knows no Debian mirror here: name one in DEBIAN_MIRROR'
        return 1
    }
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$state/sources.list"
    apt_of_trixie update
    (cd "$state" && apt_of_trixie download docker-compose)
    dpkg-deb --extract "$state"/docker-compose_*.deb "$state/unpacked"
    find "$state/unpacked" -type f -name docker-compose -perm -100 -exec cp {} "$cache/compose2" \; -quit
    "$cache/compose2" version >&2
    echo "$cache/compose2"
}

file=${2-}
case ${1-} in
    start | stop) [ -n "$file" ] && "$1" ;;
    compose2) compose2 ;;
    *) say 'usage: engine.sh start FILE | stop FILE | compose2' && exit 2 ;;
esac
