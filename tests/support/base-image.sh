#!/bin/sh
# shellcheck disable=SC2016  # apt and mmdebstrap expand these themselves
# Provides the base image debian:trixie-slim to the container engine.
#
# An image that is there is left alone, one that can be pulled is pulled. Where no registry can be reached it is made
# with mmdebstrap from the Debian mirror that this machine uses (root, or user namespaces, needed), and kept as a
# tarball in .cache/ for the next time. Sites that build behind a closed network run this before `docker build`.
#
#   CLR_BASE_IMAGE     name and tag of the image                                  (debian:trixie-slim)
#   DEBIAN_MIRROR      Debian mirror; default: the one that this machine uses, else Debian's own
#   DEBIAN_SECURITY    the same for security updates
#   CLR_BASE_DAYS      an image made here is made again when it is older than this  (7)
set -eu

image=${CLR_BASE_IMAGE:-debian:trixie-slim}
suite=trixie
days=${CLR_BASE_DAYS:-7}
cache=$(cd "$(dirname "$0")/../.." && pwd)/.cache
arch=$(dpkg --print-architecture 2>/dev/null || echo amd64)
tarball=$cache/base-$suite-$arch.tar
label=org.content-library-rsync.made

say() {
    echo "base-image: $*" >&2
}

fresh() { # an image or tarball made at $1 (seconds since the epoch) is new enough
    [ "$(($(date +%s) - $1))" -lt "$((days * 86400))" ]
}

made=$(docker image inspect --format "{{with .Config.Labels}}{{index . \"$label\"}}{{end}}" "$image" 2>/dev/null) &&
    if [ -z "$made" ] || fresh "$made"; then
        say "$image is there"
        exit 0
    fi

if [ -z "${made:-}" ] && timeout 120 docker pull --quiet "$image" >/dev/null 2>&1; then
    say "$image pulled"
    exit 0
fi

# Where this machine gets Debian from, as apt knows it; empty elsewhere than on Debian
apt_uri() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Label: $1" 2>/dev/null | sed -n '1s,/*$,,p'
}

make_tarball() {
    command -v mmdebstrap >/dev/null || {
        say "mmdebstrap is missing: apt-get install mmdebstrap"
        return 1
    }
    mirror=${DEBIAN_MIRROR:-$(apt_uri Debian)}
    [ -n "$mirror" ] || {
        say "apt knows no Debian mirror here: name one in DEBIAN_MIRROR"
        return 1
    }
    security=${DEBIAN_SECURITY:-$(apt_uri Debian-Security)}
    security=${security:-${mirror%/debian}/debian-security}

    work=$(mktemp -d "$cache/base.XXXXXX")
    trap 'rm -rf "$work"' EXIT

    cat >"$work/debian.sources" <<EOF
Types: deb
URIs: $mirror
Suites: $suite $suite-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp

Types: deb
URIs: $security
Suites: $suite-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp
EOF
    # As in Debian's own images: no caches in the layers of a build
    cat >"$work/docker-clean" <<'EOF'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
EOF
    # Builds in the image must reach the mirror as this machine does
    apt-config dump 2>/dev/null | grep -E '^Acquire::(https?::|Check-(Date|Valid-Until) )' >"$work/90host" || true
    set -- --aptopt="$work/90host"
    # A mirror with a certificate of the site's own CA
    case "$mirror $security" in
        *https:*) set -- "$@" --include=ca-certificates ;;
    esac
    if ls /usr/local/share/ca-certificates/*.crt >/dev/null 2>&1; then
        set -- "$@" --include=ca-certificates --customize-hook='copy-in /usr/local/share/ca-certificates /usr/local/share' \
            --customize-hook='chroot "$1" update-ca-certificates'
    fi

    say "making $image from $mirror"
    # What Debian's slim images leave out, and their apt options
    mmdebstrap --quiet --variant=minbase --architectures="$arch" "$@" \
        --aptopt='APT::AutoRemove::SuggestsImportant "false"' --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/lintian/*' \
        --customize-hook='rm -f "$1/etc/apt/sources.list" "$1/etc/hostname" "$1/etc/resolv.conf"' \
        --customize-hook="copy-in $work/debian.sources /etc/apt/sources.list.d" \
        --customize-hook="copy-in $work/docker-clean /etc/apt/apt.conf.d" \
        --customize-hook='rm -f "$1"/var/cache/apt/*.bin' \
        --customize-hook='printf "#!/bin/sh\nexit 101\n" >"$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d"' \
        "$suite" "$work/base.tar" "deb $mirror $suite main" "deb $mirror $suite-updates main" \
        "deb $security $suite-security main" >&2
    mv "$work/base.tar" "$tarball"
}

mkdir -p "$cache"
if [ ! -s "$tarball" ] || ! fresh "$(stat -c %Y "$tarball")"; then
    make_tarball || {
        [ -s "$tarball" ] || exit 1
        say "could not make a new base; going on with the one of $(date -r "$tarball" +%F)"
    }
fi
docker import --change "LABEL $label=$(stat -c %Y "$tarball")" --change 'CMD ["bash"]' "$tarball" "$image" >/dev/null
say "$image imported"
