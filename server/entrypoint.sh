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

# File names and comments come from outside: no control characters in the log.
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

# Without the capabilities to override file modes, which the container does not get, root can neither look into a private
# folder on a volume nor write to somebody else's. Its owner can.
as_owner() { # FOLDER COMMAND...
    folder=$1
    shift
    if [ "$(id -u)" = 0 ]; then
        set -- setpriv --reuid "$(stat -Lc %u "$folder")" --regid "$(stat -Lc %g "$folder")" --clear-groups -- "$@"
    fi
    "$@"
}

# In the image /etc/passwd and /etc/group are links into $run, so that the account can be made on a read-only root.
make_account() {
    if [ "$(readlink /etc/passwd || true)" = "$run/passwd" ]; then
        { cat "$here/passwd" && echo "syncer:*:$uid:$gid::/home/syncer:/bin/sh"; } >"$run/passwd"
        { cat "$here/group" && echo "syncer:*:$gid:"; } >"$run/group"
    fi
    id "$account" >/dev/null 2>&1 || fail "CLR_ACCOUNT=$account: allowed is an account of this machine"
}

save() { # FILE UMASK: writes the host key that stands on its input, whole or not at all
    # shellcheck disable=SC2016 # the inner shell's own variables
    as_owner "$host_keys" sh -c 'umask "$2" && cat >"$1.new" && mv -f "$1.new" "$1"' sh "$1" "$2" 2>/dev/null ||
        fail "$host_keys: the new host keys cannot be saved here; the folder's owner must be allowed to write"
}

# Made once and kept on their volume, so that clients can pin them; sshd reads copies of its own.
load_host_key() { # TYPE BITS
    name=ssh_host_$1_key
    if ! as_owner "$host_keys" test -e "$host_keys/$name"; then
        rm -f "$run/$name" "$run/$name.pub"
        ssh-keygen -q -t "$1" -b "$2" -N '' -C clr-server -f "$run/$name"
        # The private key last, so that a start that is cut short makes both anew.
        save "$host_keys/$name.pub" 022 <"$run/$name.pub"
        save "$host_keys/$name" 077 <"$run/$name"
        say "host key: made $host_keys/$name"
    fi
    rm -f "$run/$name"
    (umask 077 && as_owner "$host_keys" cat "$host_keys/$name" >"$run/$name") 2>/dev/null ||
        fail "$host_keys/$name: cannot be read; it must belong to the owner of its folder"
    fingerprint=$(ssh-keygen -lf "$run/$name" 2>/dev/null) ||
        fail "$host_keys/$name: is not a private key; restore it, or remove it to have a new one made"
    fingerprint=${fingerprint#* } fingerprint=${fingerprint%% *}
    say "host key: $1 $fingerprint    pin it at the clients with SYNC_HOST_KEY=$fingerprint"
}

key_files() {
    as_owner "$keys" find -L "$keys" -maxdepth 1 -name '*.pub' "$@" 2>/dev/null | LC_ALL=C sort
}

in_command() { # TEXT: one word of the shell command that stands between double quotes in authorized_keys
    printf '%s' "$1" | sed "s/'/'\\\\''/g; s/\"/\\\\\"/g; s/.*/'&'/"
}

# Writes authorized_keys from the *.pub files. One line of log for each key, so a bad file is found by its name.
authorize_keys() {
    : >"$run/authorized_keys.new"
    key_files -printf '%P\n' | while IFS= read -r file; do
        if ! as_owner "$keys" cat "$keys/$file" >"$run/key" 2>/dev/null; then
            say "key $file: NOT accepted: cannot be read; make it readable for the owner of its folder"
            continue
        fi
        grep -q '^[[:space:]]*[^[:space:]#]' "$run/key" || say "key $file: NOT accepted: there is no key in it"
        remark=
        [ -z "$(tail -c 1 "$run/key")" ] || remark="$remark, no newline at its end (harmless)"
        ! grep -q "$(printf '\r')" "$run/key" || remark="$remark, Windows line ends left out (harmless)"
        tr -d '\r\000' <"$run/key" | while read -r type blob comment || [ -n "$type" ]; do
            case $type in '' | '#'*) continue ;; esac
            if reason=$(refusal "$type" "$blob" "$comment"); then
                say "key $file: NOT accepted: $reason"
                case $type in ssh-* | ecdsa-* | sk-*) continue ;; *) break ;; esac # the next line may be a good key, or more of the same
            fi
            site=$(printf '%s' "${comment:-${file%.pub}}" | LC_ALL=C tr -c 'A-Za-z0-9._@-' '_' | cut -c1-64)
            printf 'restrict,command="%s %s %s %s" %s %s\n' "$(in_command "$here/serve-library")" \
                "$(in_command "$library")" "$(in_command "$run/log")" "$site" "$type" "$blob" >>"$run/authorized_keys.new"
            say "key $file: accepted for site $site, $type $(fingerprint_of "$type" "$blob")$remark"
        done
    done
    mv -f "$run/authorized_keys.new" "$run/authorized_keys"
    [ -s "$run/authorized_keys" ] || say "warning: no usable key in $keys/*.pub, so no site can log in; put each site's public key there"
}

fingerprint_of() { # TYPE BLOB
    printf '%s %s\n' "$1" "$2" | ssh-keygen -lf - 2>/dev/null | cut -d ' ' -f 2
}

# Says why a key cannot be used; fails when it can.
refusal() { # TYPE BLOB COMMENT
    case $1 in
    ssh-ed25519 | ssh-rsa) ;;
    ssh-dss) echo 'DSA keys are no longer safe; make one with ssh-keygen -t ed25519' && return ;;
    ecdsa-* | sk-*) echo "keys of type $1 are not taken; make one with ssh-keygen -t ed25519" && return ;;
    -----BEGIN) echo 'this is a private key, which belongs at the site alone; put its .pub here' && return ;;
    ----*) echo 'this is not in the format of OpenSSH; convert it with ssh-keygen -i' && return ;;
    *)
        case " $2 $3" in
        *' ssh-'* | *' ecdsa-'* | *' sk-'*) echo 'options stand in front of the key; remove them, the server sets its own' ;;
        *) echo 'this is not a public key of OpenSSH' ;;
        esac
        return
        ;;
    esac
    bits=$(printf '%s %s\n' "$1" "$2" | ssh-keygen -lf - 2>/dev/null) || bits=
    bits=${bits%% *}
    case $bits in
    '' | *[!0-9]*) echo 'the key is damaged, perhaps cut off or wrapped' ;;
    *) [ "$1" = ssh-rsa ] && [ "$bits" -lt 2048 ] && echo "RSA with $bits bits is too short; 2048 at least, or ssh-keygen -t ed25519" ;;
    esac
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

[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
number SYNCER_UID "$uid" 1 4294967294
number SYNCER_GID "$gid" 1 4294967294
number SYNC_MAX_SESSIONS "$sessions" 1 10000
number CLR_PORT "$port" 1 65535
case ${TZ-UTC} in *..* | /*) zone= ;; *) zone=/usr/share/zoneinfo/${TZ:-UTC} ;; esac
[ -f "$zone" ] || fail "TZ=$TZ: allowed is a name from the TZ database, such as UTC, Europe/Berlin or America/Chicago"
for folder in "$keys" "$host_keys"; do
    [ -d "$folder" ] || fail "$folder: this folder is missing; mount a volume there"
done
mkdir -p "$run"

make_account
report_rsync
load_host_key ed25519 256
load_host_key rsa 4096
known=$(key_files -printf '%P %s %T@ %C@ %i\n')
authorize_keys
trouble=$("$here/healthcheck" library) || say "warning: $trouble"

# Sessions write their lines into a fifo, because they may not write to this process's output; so does sshd, whose many
# words about an ordinary visit, the healthcheck's among them, are left out.
rm -f "$run/log"
mkfifo -m 622 "$run/log"
exec 3<>"$run/log"
LC_ALL=C grep -aEv --line-buffered \
    -e '^(Connection from|Accepted key|Postponed publickey for|User child is on pid|Starting session:|Close session:) ' \
    -e '^(Received disconnect from .*:11: disconnected by|Disconnected from) user' \
    -e '^(Transferred: sent|Closing connection to|Connection (closed|reset) by 127\.0\.0\.1) ' <&3 &
reader=$!

set -- -f "$here/sshd_config" -p "$port" -o "AuthorizedKeysFile=\"$run/authorized_keys\"" \
    -o "HostKey=\"$run/ssh_host_rsa_key\"" -o "HostKey=\"$run/ssh_host_ed25519_key\"" \
    -o "MaxStartups=$sessions:30:$((2 * sessions))"
for option in ${CLR_SSHD_OPTIONS-}; do
    set -- -o "$option" "$@"
done
sshd=/usr/sbin/sshd
"$sshd" -t "$@" || fail "sshd does not accept its configuration, see above"
# Known to OpenSSH 9.9 and 9.8 and later. Penalties would lock out all sites behind one address for the mistakes of one.
for option in KexAlgorithms=mlkem768x25519-sha256,sntrup761x25519-sha512,sntrup761x25519-sha512@openssh.com PerSourcePenalties=no; do
    ! "$sshd" -t -o "$option" "$@" 2>/dev/null || set -- "$@" -o "$option"
done
# Its log is opened so that a write never waits: when nobody takes the container's output, lines are lost and logins go on.
python3 -ISc 'import os, sys; os.set_blocking(2, False); os.execv(sys.argv[1], sys.argv[1:])' \
    "$sshd" -D -e "$@" 2>"$run/log" 3>&- &
sshd=$!
pause=

# shellcheck disable=SC2317 # reached by the trap
stop() {
    say 'stopping: running transfers end, the sites take them up again'
    kill "$sshd" ${pause:+"$pause"} 2>/dev/null || true
    wait "$sshd" || true
    kill "$reader" || true
    exit 0
}
trap stop TERM INT
say "serving $library on port $port; $sessions sites may log in at the same moment"

# Removing a key's file shuts its site out within seconds, adding one lets it in; transfers that run are not cut off.
while kill -0 "$sshd" 2>/dev/null; do
    now=$(key_files -printf '%P %s %T@ %C@ %i\n')
    if [ "$now" != "$known" ]; then
        known=$now
        authorize_keys
    fi
    sleep 2 3>&- &
    pause=$!
    wait "$pause" || true
done
code=0
wait "$sshd" || code=$?
sleep 0.2 # for its last words to come through
say "sshd ended with exit code $code"
kill "$reader"
exit 1
