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
    printf '%s\n' "$1" | LC_ALL=C tr -c '[:print:]\n' '?'
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

report_rsync() {
    version=$(rsync --version | sed -n '1s/^rsync  *version \([^ ]*\).*/\1/p')
    package=$(dpkg-query -W -f '${Version}' rsync 2>/dev/null || true)
    say "rsync $version (package ${package:-none})"
    dpkg --compare-versions "${version#v}" lt 3.5.0 || return 0
    case $package in
    *+deb[0-9]*u[0-9]* | *ubuntu*.[0-9]*) ;; # the distribution's security team has been at it
    *) say "warning: rsync $version is older than 3.5.0, whose fixes keep a client inside the library; rebuild the image with updates" ;;
    esac
}

# Sessions write their lines into a fifo, because they may not write to this process's output; so does sshd, whose many
# words about an ordinary visit, the healthcheck's among them, are left out. (UNKNOWN left before sshd asked for its address.)
start_log() {
    rm -f "$run/log"
    mkfifo -m 622 "$run/log"
    exec 3<>"$run/log"
    LC_ALL=C grep -aEv --line-buffered \
        -e '^(Connection from|Accepted key|Postponed publickey for|User child is on pid|Starting session:|Close session:) ' \
        -e '^(Received disconnect from .*:11: disconnected by|Disconnected from) user' \
        -e '^(Transferred: sent|Closing connection to|Connection (closed|reset) by (127\.0\.0\.1|UNKNOWN)) ' <&3 &
    log=$!
}

start_sshd() {
    set -- -f "$here/sshd_config" -p "$port" -o "AuthorizedKeysFile=\"$run/authorized_keys\"" \
        -o "HostKey=\"$run/ssh_host_rsa_key\"" -o "HostKey=\"$run/ssh_host_ed25519_key\"" \
        -o "MaxStartups=$sessions:30:$((2 * sessions))"
    for option in ${CLR_SSHD_OPTIONS-}; do
        set -- -o "$option" "$@"
    done
    /usr/sbin/sshd -t "$@" || fail "sshd does not accept its configuration, see above"
    # Known to OpenSSH 9.9 and 9.8 and later. Penalties would lock out all sites behind one address for the mistakes of one.
    for option in KexAlgorithms=mlkem768x25519-sha256,sntrup761x25519-sha512,sntrup761x25519-sha512@openssh.com PerSourcePenalties=no; do
        ! /usr/sbin/sshd -t -o "$option" "$@" 2>/dev/null || set -- "$@" -o "$option"
    done
    # Its log is opened so that a write never waits: when nobody takes the container's output, lines are lost and logins go on.
    python3 -ISc 'import os, sys; os.set_blocking(2, False); os.execv(sys.argv[1], sys.argv[1:])' \
        /usr/sbin/sshd -D -e "$@" 2>"$run/log" 3>&- &
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
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
make_account
report_rsync
"$here/host-keys" "$host_keys" "$run"
"$here/authorize-keys" "$keys" "$run" "$library"
trouble=$("$here/healthcheck" library) || say "warning: $trouble"
start_log
start_sshd
# Removing a key's file shuts its site out within seconds, adding one lets it in; transfers that run are not cut off.
"$here/authorize-keys" "$keys" "$run" "$library" "$sshd" 3>&- &
keeper=$!
trap stop TERM INT
say "serving $library on port $port; $sessions sites may log in at the same moment"

# It ends when sshd does. Should it fail, then sshd must not go on letting in the keys of yesterday.
wait "$keeper" || say 'authorize-keys failed, so sshd is stopped'
kill "$sshd" 2>/dev/null || true
code=0
wait "$sshd" || code=$?
sleep 0.2 # for its last words to come through
say "sshd ended with exit code $code"
kill "$log"
exit 1
