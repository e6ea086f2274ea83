#!/bin/bash
# Makes a bare Debian 12 machine ready to build and run Kata; with --kernel also to compile a guest's kernel, with --test
# also to test all of it. Installs from apt's and
# cargo's registries only what is missing, so that it may be run before everything and costs nothing the second time.
#
#   scripts/setup.sh [--kernel|--test]
set -euo pipefail

# QEMU comes from backports: Debian 12's own 7.2 cannot stand beside tools of the newer version, which machines often
# carry, and lacks what the driver uses.
backports_packages=(qemu-system-x86 qemu-system-data)
packages=(
    busybox-static  # the demonstration's root file system
    dpkg xz-utils zstd lz4 bzip2 gzip  # take kernel packages apart
    libseccomp-dev libcap-ng-dev  # linked into the programs and into virtiofsd
    gcc libc6-dev make pkg-config ca-certificates
)
kernel_packages=(flex bison bc libelf-dev perl diffutils binutils)
test_packages=(
    "${kernel_packages[@]}"
    containerd runc crun podman conmon containernetworking-plugins
    iptables iproute2 jq hyperfine strace musl-tools procps psmisc cpio util-linux e2fsprogs mount
    libdevmapper1.02.1  # Docker's daemon is linked with it
    debootstrap  # the root file system of real programs
)
# What the root file system of real programs holds besides Debian's smallest set.
root_packages=(redis-server redis-tools nginx-light iperf3)
# Engines that are unpacked beside the machine, not installed: newer ones than its own, and daemons that it is not to run.
# FOLDER SUITE PROGRAM PACKAGE…; RELEASE stands for the machine's own suite.
engines=(
    "containerd-2 testing bin/containerd containerd"
    "docker-20 RELEASE sbin/dockerd docker.io tini"
    "docker-28 testing sbin/dockerd docker.io docker-cli tini-static"
)
virtiofsd_version=1.14.0
tools=/opt/kata-tools
backports_file=/etc/apt/sources.list.d/kata-backports.sources
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

fail() {
    echo "setup: $*" >&2
    exit 1
}

say() {
    echo "setup: $*"
}

# quietly WHAT COMMAND…: shows the command's words only if it fails.
quietly() {
    local what=$1 log
    shift
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 25 "$log" >&2
        rm -f "$log"
        fail "cannot $what (the last lines are above)"
    fi
    rm -f "$log"
}

# missing PACKAGE…: prints those that are not installed.
missing() {
    local installed name
    # It also fails for packages that dpkg has never heard of; those are missing all the same.
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true)
    for name in "$@"; do
        grep -qxF "installed $name" <<<"$installed" || echo "$name"
    done
}

have_virtiofsd() {
    local place
    for place in "$tools/bin" /usr/libexec /usr/lib/qemu /opt/kata/libexec; do
        [ -x "$place/virtiofsd" ] && return
    done
    return 1
}

# Where apt's own sources lead for the release itself, its other suites are found too: no host is named here.
find_release() {
    local targets
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    [ -n "$codename" ] || fail "/etc/os-release names no VERSION_CODENAME; this script knows Debian 12"
    targets=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages')
    suites=$(awk '$2 == "main" { print $1 }' <<<"$targets")
    mirror=$(sed -n "s/^$codename main //p" <<<"$targets" | head -n 1)
    [ -n "$mirror" ] || fail "apt has no source for $codename main, from which others could be derived"
}

# source_of SUITE…: prints a source of apt for suites of the same mirror.
source_of() {
    echo "# Written by scripts/setup.sh of Kata, derived from the source of $codename."
    echo "Types: deb"
    echo "URIs: $mirror"
    echo "Suites: $*"
    echo "Components: main"
    [ ! -e $keyring ] || echo "Signed-By: $keyring"
}

add_backports() {
    find_release
    backports=$codename-backports
    if grep -qx "$backports" <<<"$suites"; then
        return
    fi
    source_of "$backports" >$backports_file
    say "added $backports to apt's sources ($backports_file)"
}

install_packages() {
    local from_backports=() others=() backports codename suites mirror
    mapfile -t from_backports < <(missing "${backports_packages[@]}")
    mapfile -t others < <(missing "${packages[@]}")
    [ ${#from_backports[@]} -gt 0 ] || [ ${#others[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || fail "must be run as root: it has to install ${from_backports[*]} ${others[*]}"
    add_backports
    quietly "update apt's package lists" apt-get update -q
    local install=(apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
    export DEBIAN_FRONTEND=noninteractive
    if [ ${#from_backports[@]} -gt 0 ]; then
        say "installing ${from_backports[*]} from $backports"
        quietly "install ${from_backports[*]}" "${install[@]}" -t "$backports" "${from_backports[@]}"
    fi
    if [ ${#others[@]} -gt 0 ]; then
        say "installing ${others[*]}"
        quietly "install ${others[*]}" "${install[@]}" "${others[@]}"
    fi
}

install_virtiofsd() {
    have_virtiofsd && return
    [ -w "$(dirname $tools)" ] || fail "must be run as root: it has to install virtiofsd into $tools"
    say "building virtiofsd $virtiofsd_version into $tools (some minutes)"
    quietly "build virtiofsd" cargo install virtiofsd --version $virtiofsd_version --locked --root $tools
}

# Unpacks what is missing of the engines. apt works with lists of its own for it, in a folder that goes afterwards: the
# machine's sources and packages stay as they are.
unpack_engines() {
    local engine folder program words missing=() state apt codename suites mirror
    for engine in "${engines[@]}"; do
        read -r folder _ program _ <<<"$engine"
        [ -x "$tools/engines/$folder/usr/$program" ] || missing+=("$engine")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || fail "must be run as root: it has to unpack engines into $tools/engines"
    find_release
    mkdir -p "$tools/engines"
    state=$(mktemp -d "$tools/engines/.apt.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$state'" EXIT
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    { source_of "$codename" testing && echo "Targets: Packages"; } >"$state/engines.sources"
    apt=(apt-get -q -o "Dir::State=$state" -o "Dir::State::lists=$state/lists" -o Dir::State::status=/dev/null
        -o "Dir::Cache=$state" -o "Dir::Etc::sourcelist=$state/engines.sources" -o Dir::Etc::sourceparts=/dev/null
        -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0)
    quietly "fetch the package lists of $codename and testing" "${apt[@]}" update
    for engine in "${missing[@]}"; do
        read -r -a words <<<"${engine/RELEASE/$codename}"
        say "unpacking ${words[*]:3} into $tools/engines/${words[0]}"
        unpack_engine "${words[@]}"
    done
}

# unpack_engine FOLDER SUITE PROGRAM PACKAGE…: the folder appears when it is whole. Uses `state` and `apt`.
unpack_engine() {
    local folder=$1 suite=$2 program=$3 root package
    shift 3
    root=$state/$folder
    mkdir -p "$root/archives"
    (cd "$root/archives" && quietly "download $* of $suite" "${apt[@]}" download "${@/%//$suite}")
    for package in "$root"/archives/*.deb; do
        quietly "unpack $package" dpkg -x "$package" "$root/root"
    done
    quietly "run $program of $suite, which this machine may be too old for" "$root/root/usr/$program" --version
    rm -rf "${tools:?}/engines/$folder"
    mv "$root/root" "$tools/engines/$folder"
}

# Makes the root file system of real programs, anew when the list of its packages has changed. It appears when it is whole.
make_debian_root() {
    local root=$tools/debian list=${root_packages[*]} work codename suites mirror
    [ "$(cat "$root/packages" 2>/dev/null)" != "$list" ] || return 0
    [ "$(id -u)" = 0 ] || fail "must be run as root: it has to make a root file system in $root"
    find_release
    say "making a root file system with $list in $root (some minutes)"
    rm -rf "$tools"/.debian.*
    mkdir -p "$tools"
    work=$(mktemp -d "$tools/.debian.XXXXXX")
    chmod 755 "$work"
    # In a mount namespace of its own: whatever debootstrap mounts goes with it.
    quietly "make a root file system with debootstrap" unshare --mount --propagation private \
        debootstrap --variant=minbase --include="${list// /,}" "$codename" "$work/root" "$mirror"
    rm -rf "$work/root/usr/share/"{doc,info,locale,man} "$work/root/var/lib/apt/lists" "$work/root/var/cache/apt" \
        "$work/root/debootstrap"
    echo "$list" >"$work/packages"
    rm -rf "$root"
    mv "$work" "$root"
}

testing=
case "${1:-}" in
'') ;;
--kernel) packages+=("${kernel_packages[@]}") ;;
--test) packages+=("${test_packages[@]}") testing=yes ;;
*) fail "unknown argument $1; usage: scripts/setup.sh [--kernel|--test]" ;;
esac
[ "$(uname -sm)" = "Linux x86_64" ] || fail "this is $(uname -sm); only Linux on x86_64 is supported"
command -v apt-get >/dev/null && command -v dpkg-query >/dev/null || fail "no apt here; this script knows Debian 12"
command -v cargo >/dev/null || fail "no cargo in PATH; install Rust 1.95 or newer (Debian 12's own is too old)"
install_packages
install_virtiofsd
[ -z "$testing" ] || unpack_engines
[ -z "$testing" ] || make_debian_root
