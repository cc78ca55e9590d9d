#!/bin/sh
# The server's process: checks its settings, makes the account, host keys and authorized_keys, and keeps sshd running.
# The CLR_* variables are for running it outside of its image; in the image their defaults are right. CLR_SSHD_OPTIONS holds
# more settings for sshd, NAME=VALUE each, which override all others.
set -eu

here=$(dirname "$(readlink -f "$0")")
account=${CLR_ACCOUNT:-syncer}
keys=${CLR_KEYS:-/home/syncer/.ssh}
host_keys=${CLR_HOST_KEYS:-/etc/ssh/keys}
library=${CLR_LIBRARY:-/syncer/library}
run=${CLR_RUN:-/run/clr}
port=${CLR_PORT:-22}
uid=${SYNCER_UID:-31337}
gid=${SYNCER_GID:-$uid}
sessions=${SYNC_MAX_SESSIONS:-200}

# Values come from outside: no control characters in the log.
say() {
    printf '%s\n' "$*" | LC_ALL=C tr -c '[:print:]\n' '?'
}

fail() {
    say "clr-server: $1" >&2
    exit 3
}

number() { # NAME VALUE LOW HIGH
    case $2 in
    '' | *[!0-9]* | 0?* | ???????????*) ;;
    *) [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ] || return 0 ;;
    esac
    fail "$1=$2: allowed is a whole number from $3 to $4"
}

check_settings() {
    number SYNCER_UID "$uid" 1 4294967294
    number SYNCER_GID "$gid" 1 4294967294
    number SYNC_MAX_SESSIONS "$sessions" 1 10000
    number CLR_PORT "$port" 1 65535
    case ${TZ-UTC} in *..* | /*) zone= ;; *) zone=/usr/share/zoneinfo/${TZ:-UTC} ;; esac
    [ -f "$zone" ] || fail "TZ=$TZ: allowed is a name from the TZ database, such as UTC, Europe/Berlin or America/Chicago"
    for folder in "$keys" "$host_keys"; do
        [ -d "$folder" ] || fail "$folder: this folder is missing; mount a volume there"
    done
}

# In the image /etc/passwd and /etc/group are links into $run, so that the account can be made on a read-only root.
make_account() {
    if [ "$(readlink /etc/passwd || true)" = "$run/passwd" ]; then
        { cat "$here/passwd" && echo "syncer:*:$uid:$gid::/home/syncer:/bin/sh"; } >"$run/passwd"
        { cat "$here/group" && echo "syncer:*:$gid:"; } >"$run/group"
    fi
    id "$account" >/dev/null 2>&1 || fail "CLR_ACCOUNT=$account: allowed is an account of this machine"
}

# 3.5.0 is what Debian 12 and 13 carry as a security update. The number alone is judged: which revision of another
# distribution has the fixes cannot be told from here.
report_rsync() {
    version=$(rsync --version | sed -n '1s/^rsync  *version \([^ ]*\).*/\1/p')
    package=$(dpkg-query -W -f '${Version}' rsync 2>/dev/null || true)
    say "rsync $version (package ${package:-none})"
    ! dpkg --compare-versions "${version#v}" lt 3.5.0 ||
        say "warning: rsync $version has holes by which a stolen key can leave the library (CVE-2026-53783) or write to memory" \
            "(CVE-2026-70461), unless its distribution has closed them; use 3.5.0 or newer (a rebuilt image has it)"
}

# Who sends decides how a line with loss is used, and that is this side. A container has the host's choice of the moment when
# it was started, and may choose among what the host allows; older kernels do not tell a container what that is.
report_congestion_control() {
    got=$(cat /proc/sys/net/ipv4/tcp_congestion_control 2>/dev/null) || return 0
    known=$(cat /proc/sys/net/ipv4/tcp_available_congestion_control 2>/dev/null || true)
    allowed=$(cat /proc/sys/net/ipv4/tcp_allowed_congestion_control 2>/dev/null || true)
    say "congestion control: $got (allowed: ${allowed:-unknown}; known to the kernel: ${known:-unknown})"
    case "$got: $allowed " in
    bbr:*) ;;
    *" bbr "*)
        say 'lines that lose packets carry far more with bbr: take it with the sysctls of docker-compose.server.yaml' \
            '(docs/how-to/lossy-lines.md)' ;;
    *)
        say "lines that lose packets carry far more with bbr: on the host, 'modprobe tcp_bbr' and" \
            "'sysctl net.ipv4.tcp_congestion_control=bbr', then start this container again (docs/how-to/lossy-lines.md)" ;;
    esac
}

# Sessions write their lines into a fifo, because they may not write to this process's output, sshd its messages into a socket.
start_log() {
    rm -f "$run/log" "$run/log.socket"
    mkfifo -m 622 "$run/log"
    "$here/log-lines" "$run" &
    log=$!
    until [ -S "$run/log.socket" ]; do
        kill -0 "$log" 2>/dev/null || fail "log-lines does not run, see above"
        sleep 0.05
    done
}

start_sshd() {
    set -- -f "$here/sshd_config" -p "$port" -o "AuthorizedKeysFile=\"$run/authorized_keys\"" \
        -o "HostKey=\"$run/ssh_host_rsa_key\"" -o "HostKey=\"$run/ssh_host_ed25519_key\"" \
        -o "MaxStartups=$((2 * sessions)):30:$((4 * sessions))" -o "PerSourceMaxStartups=$sessions"
    for option in ${CLR_SSHD_OPTIONS-}; do
        set -- -o "$option" "$@"
    done
    /usr/sbin/sshd -t "$@" || fail "sshd does not accept its configuration, see above"
    # Known to OpenSSH 9.9 and 9.8 and later. Penalties would lock out all sites behind one address for the mistakes of one.
    for option in KexAlgorithms=mlkem768x25519-sha256,sntrup761x25519-sha512,sntrup761x25519-sha512@openssh.com PerSourcePenalties=no; do
        ! /usr/sbin/sshd -t -o "$option" "$@" 2>/dev/null || set -- "$@" -o "$option"
    done
    # A write to its log never waits: when nobody takes the container's output, lines are lost and logins go on.
    python3 -ISc 'if True:
        import os, socket, sys
        os.chdir(sys.argv[1])
        log = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log.connect("log.socket")
        log.setblocking(False)
        os.dup2(log.fileno(), 2)
        os.execv(sys.argv[2], sys.argv[2:])' "$run" /usr/sbin/sshd -D -e "$@" &
    sshd=$!
}

# shellcheck disable=SC2317 # reached by the trap
stop() {
    say 'stopping: running transfers end, the sites take them up again'
    kill "$sshd" "$keeper" 2>/dev/null || true
    wait "$sshd" || true
    kill "$log" || true
    exit 0
}

check_settings
mkdir -p "$run"
mkdir -p "$run/sessions"
chmod 1733 "$run/sessions"
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
make_account
report_rsync
report_congestion_control
"$here/host-keys" "$host_keys" "$run"
"$here/authorize-keys" "$keys" "$run" "$library" "$sessions"
trouble=$("$here/healthcheck" library) || say "warning: $trouble"
start_log
start_sshd
# Removing a key's file shuts its site out within seconds, adding one lets it in; transfers that run are not cut off.
"$here/authorize-keys" "$keys" "$run" "$library" "$sessions" "$sshd" "$log" &
keeper=$!
trap stop TERM INT
say "serving $library on port $port; $sessions sites may log in at the same moment"

# It ends when sshd or its log does. Should it fail, then sshd must not go on letting in the keys of yesterday.
wait "$keeper" || say 'authorize-keys failed, so sshd is stopped'
kill -0 "$log" 2>/dev/null || say 'log-lines failed, so sshd is stopped'
kill "$sshd" 2>/dev/null || true
code=0
wait "$sshd" || code=$?
sleep 0.2 # for its last words to come through
say "sshd ended with exit code $code"
kill "$log" 2>/dev/null || true
exit 1
