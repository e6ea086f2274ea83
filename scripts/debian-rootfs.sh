#!/bin/bash
# Makes a Debian root file system with real servers and their clients in it, for the tests that put them into pods.
#
#   scripts/debian-rootfs.sh DIR
#
# DIR is there afterwards, whole, or as it was before. One made of the same packages before is kept.
set -euo pipefail

packages=redis-server,redis-tools,nginx-light,iperf3
dir=$1
stamp=$dir/.made-of

[ "$(cat "$stamp" 2>/dev/null)" != "$packages" ] || exit 0
# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
uri=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    sed -n "s/^$codename main //p" | head -n 1)
[ -n "$uri" ] || { echo "debian-rootfs: apt has no source for $codename main" >&2; exit 1; }

fresh=$dir.new-$$
log=$dir.log
trap 'rm -rf --one-file-system "$fresh"' EXIT
mkdir -p "$(dirname "$dir")"
if ! debootstrap --variant=minbase --include="$packages" "$codename" "$fresh" "$uri" >"$log" 2>&1; then
    tail -n 25 "$log" "$fresh/debootstrap/debootstrap.log" >&2 || true
    echo "debian-rootfs: debootstrap failed (the last lines are above)" >&2
    exit 1
fi
rm -rf "$fresh"/var/cache/apt/archives/*.deb "$fresh"/var/lib/apt/lists/* "$fresh"/usr/share/{doc,man,locale} "$log"
echo "$packages" >"$fresh/.made-of"
rm -rf --one-file-system "$dir"
mv "$fresh" "$dir"
