#!/usr/bin/env bash
# nginx for the tests of deploy/nginx, where the machine has none: Debian's package, unpacked into a
# folder of the checkout. Nothing is installed, and no service starts on port 80.
#
#   requirements/nginx.sh   says where it is, or in one line what to do
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
folder=$root/.cache/nginx # benchmarks/nginx.py looks there
binary=$folder/usr/sbin/nginx

say() { echo "nginx.sh: $*"; }
runs() { "$1" -v >/dev/null 2>&1; }

unpack() { # into the folder, all or nothing
    local work
    work=$(mktemp -d)
    chmod 755 "$work" # apt's own user writes there
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    (cd "$work" && { apt-get -qq download nginx || { apt-get -qq update && apt-get -qq download nginx; }; }) \
        >/dev/null 2>&1 || return
    dpkg-deb -x "$work"/nginx_*.deb "$work/unpacked" || return
    rm -rf "$folder"
    mkdir -p "$(dirname "$folder")"
    mv "$work/unpacked" "$folder"
}

for found in "${NGINX:-}" "$(command -v nginx || true)" /usr/sbin/nginx "$binary"; do
    if [[ -n $found ]] && runs "$found"; then
        exit
    fi
done
if unpack && runs "$binary"; then
    say "nginx of Debian's package, for tests only: $binary"
else
    say "the tests of deploy/nginx need nginx; install it (on Debian or Ubuntu: apt-get install nginx), or name one with NGINX=..." >&2
    exit 2
fi
