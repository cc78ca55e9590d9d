#!/bin/sh
# `clr` in the image: what the container starts, and what `docker exec clr-client clr …` finds.
#
# As root it makes the volumes usable for the account SYNCER_UID and goes on as that account. As any other account
# (`user:` in the compose file, a random uid) it only says what that account cannot use.
# Keys, and certificates that the account cannot read, are copied to tmpfs. All of it may be repeated at any time.
set -eu
trap 'exit 143' TERM INT # which the first process of a container would ignore

library=${CLR_LIBRARY_DIR:-/syncer/library}
data=${CLR_DATA_DIR:-/data}
keys=${CLR_KEYS_DIR:-/syncer/.ssh}
certs=${CLR_CERTS_DIR:-/etc/caddycerts}
run=${CLR_RUN_DIR:-/run/clr}

say() { echo "clr: $*" >&2; }

die() {
    say "$*"
    exit 3
}

# A folder of which the top or the first level belongs to someone else, as the original CLR left it, is handed over.
# Its top comes last, so what an interrupted walk left is found again. -execdir: no link can lead the walk elsewhere.
take_over() {
    [ -n "$(find "$1" -maxdepth 1 ! -uid "$uid" -print -quit 2>/dev/null)" ] || return 0
    say "$1: handing it over to uid $uid (once)"
    find "$1" -xdev -depth ! -uid "$uid" -execdir chown -h "$uid:$gid" {} + 2>/dev/null || true
}

# Copy file $1 to $2 for the account alone, with the line ends that ssh insists on; nothing when it is there already.
copy() {
    # shellcheck disable=SC1003  # `a\` without a text ends the last line
    (umask 077 && sed -e 's/\r$//' -e '$a\' -- "$1" >"$2.$$" 2>/dev/null) || {
        rm -f "$2.$$"
        return 1
    }
    if cmp -s "$2.$$" "$2"; then
        rm -f "$2.$$"
    else
        [ "$(id -u)" = "$uid" ] || chown "$uid:$gid" "$2.$$"
        mv -f "$2.$$" "$2"
    fi
}

# ssh takes a private key only from a file that its user owns and nobody else may read. It is id_syncer, or else the
# first private key that is there.
copy_key() {
    mkdir -p "$copies/keys"
    export CLR_KEYS_DIR="$copies/keys"
    for key in "$keys/id_syncer" "$keys"/id_*; do
        case $key in *.pub) continue ;; esac
        [ -e "$key" ] || continue
        copy "$key" "$CLR_KEYS_DIR/id_syncer" || say "$key: uid $(id -u) cannot read it; chown or chmod it on the host"
        return 0
    done
    rm -f "$CLR_KEYS_DIR/id_syncer"
}

copy_certs() {
    [ -e "$certs/key.pem" ] && [ -e "$certs/cert.pem" ] || return 0
    if as_account test -r "$certs/key.pem" && as_account test -r "$certs/cert.pem"; then
        return 0
    fi
    if [ "$(id -u)" = "$uid" ]; then
        say "$certs: uid $uid cannot read key.pem and cert.pem; chown or chmod them on the host"
        return 0
    fi
    if [ ! -d "$copies/certs" ]; then
        mkdir -p "$copies/certs"
        say "$certs: uid $uid cannot read key.pem and cert.pem, so copies are served, and a renewal is seen at the next" \
            "health check or restart; chown them to $uid on the host and it is seen at once"
    fi
    if copy "$certs/key.pem" "$copies/certs/key.pem" && copy "$certs/cert.pem" "$copies/certs/cert.pem"; then
        export CLR_CERTS_DIR="$copies/certs"
    fi
}

# Said once, when the container starts.
report() {
    if [ ! -e "$CLR_KEYS_DIR/id_syncer" ]; then
        say "$keys: no private key that can be read; put id_syncer there"
    elif ! as_account ssh-keygen -y -P '' -f "$CLR_KEYS_DIR/id_syncer" >/dev/null 2>&1; then
        say "$key: not a private key that ssh can use here: wrong format, or locked with a passphrase"
    fi
    for folder in "$library" "$data"; do
        as_account test -w "$folder" ||
            say "$folder: uid $uid cannot write there; mount it writable, and chown it to $uid on the host"
    done
}

if [ "$(id -u)" = 0 ]; then
    uid=${SYNCER_UID:-31337}
    gid=${SYNCER_GID:-$uid}
    copies=$run.copies
    for id in "$uid" "$gid"; do
        case $id in
            *[!0-9]* | 0* | ??????????*) die "SYNCER_UID=$uid, SYNCER_GID=$gid cannot be used; allowed: whole numbers above 0" ;;
        esac
    done
    account() { setpriv "--reuid=$uid" "--regid=$gid" --clear-groups --no-new-privs "$@"; }
    as_account() { account --inh-caps=-all "$@"; }
    as_account true || die "cannot become uid $uid: give the container the capabilities SETUID and SETGID, or set user:"
    export CLR_HANDS_OVER=true # for `clr doctor`: folders of another account become this one's when the container starts
    [ -d "$run" ] || install -d -m 0700 -o "$uid" -g "$gid" "$run"
    if [ "${1-}" = run ]; then
        for folder in "$library" "$data"; do
            take_over "$folder"
        done
    fi
else
    uid=$(id -u)
    copies=$run/copies
    (umask 077 && mkdir -p "$run") || die "$run: uid $uid cannot write there; mount a tmpfs on it"
    as_account() { "$@"; }
fi
copy_key
copy_certs
[ "${1-}" != run ] || report

set -- python3 -I -m clr_client "$@"
# The container's first process, also as the account: root without further capabilities could not end what it started
[ "$$" != 1 ] || set -- tini -- "$@"
export HOME="$run"
if [ "$(id -u)" != 0 ]; then
    exec "$@"
fi
# Ports below 1024, where the container has the capability for them; nothing else is kept
bind=-all,+net_bind_service
account "--inh-caps=$bind" "--ambient-caps=$bind" true 2>/dev/null || bind=-all
exec setpriv "--reuid=$uid" "--regid=$gid" --clear-groups --no-new-privs "--inh-caps=$bind" "--ambient-caps=$bind" "$@"
