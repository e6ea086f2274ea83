#!/bin/bash
# `make run`: from a bare machine to a container in a VM, with the time that each phase took. What is there is not made
# again, so that a second run takes seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

runtime=target/release/kata-runtime
demo=target/demo
begun=$(date +%s%N)
phases=()

# phase NAME COMMAND…: runs it and remembers how long it took.
phase() {
    local name=$1 from
    shift
    from=$(date +%s%N)
    "$@"
    phases+=("$(printf '%-28s %8.2f s' "$name" "$(seconds_since "$from")")")
}

seconds_since() {
    local ms=$((($(date +%s%N) - $1) / 1000000))
    printf '%d.%03d' $((ms / 1000)) $((ms % 1000))
}

make_bundle() {
    [ -e $demo/config.json ] && return
    rm -rf $demo
    mkdir -p $demo/rootfs/{bin,dev,etc,proc,root,sys,tmp}
    cp "$(command -v busybox)" $demo/rootfs/bin/busybox
    local applet
    for applet in $(busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$demo/rootfs/bin/$applet"
    done
    $runtime spec --bundle $demo
    # Without a terminal, sh reads what it is to do from stdin.
    sed -i 's/"terminal": *true/"terminal": false/' $demo/config.json
}

run_container() {
    $runtime run --trace --bundle $demo "demo-$$" <<'END' | tee $demo/said
echo "guest kernel   $(uname -r)"
echo "guest memory   $(awk '/MemTotal/ {print int($2 / 1024) " MiB"}' /proc/meminfo), $(nproc) CPU"
echo "processes      $(ps -o pid,args | tail -n +2 | head -n 1)"
END
}

phase "set-up" scripts/setup.sh
phase "programs built" make --no-print-directory --silent build
phase "guest assets" $runtime image build
phase "root file system" make_bundle

echo
echo "host kernel    $(uname -r)"
echo "accelerator    $($runtime env | sed -n '/^\[Accelerator\]/,/^\[/{s/^Name = "\(.*\)"/\1/p; s/^Reason = "\(.*\)"/(\1)/p}' | paste -sd ' ')"
phase "container, start to end" run_container
if [ "$(sed -n 's/^guest kernel *//p' $demo/said)" = "" ]; then
    echo "the container said nothing" >&2
    exit 1
fi

echo
printf '%s\n' "${phases[@]}"
printf '%-28s %8.2f s\n' total "$(seconds_since "$begun")"
