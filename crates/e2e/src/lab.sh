# A private room for engines: own mounts, network, processes, cgroups, /run and /tmp. It lives as long as its stdin is
# open, so it cannot outlive the test that holds the other end, however that test ends.
#
#   KATA_E2E_WORKSPACE=DIR [KATA_E2E_ASSETS=STORE] lab.sh NAME SCRATCH
#
# STORE (`kata-runtime image build --out STORE`) is what the room sees in place of the machine's own guest assets.
# It prints the host's pid of the room's first process once the room is ready; DIR is seen in the room as it is outside.
set -eu
name=$1 scratch=$2
outer=()

leave() {
    local dir
    for dir in "${outer[@]}"; do
        find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
    rm -rf "$scratch"
}
trap leave EXIT
trap '' INT TERM HUP

while IFS=: read -r _ controller path; do
    controller=${controller#name=}
    [ -n "$controller" ] || continue
    here=/sys/fs/cgroup/$controller$path
    [ -e "$here/cgroup.procs" ] || continue
    mkdir "$here/$name"
    outer+=("$here/$name")
    if [ "$controller" = cpuset ]; then
        cat "$here/cpuset.cpus" >"$here/$name/cpuset.cpus"
        cat "$here/cpuset.mems" >"$here/$name/cpuset.mems"
    fi
done </proc/self/cgroup

(
    trap - EXIT
    for dir in "${outer[@]}"; do echo "$BASHPID" >"$dir/cgroup.procs"; done
    exec unshare --net --mount --pid --ipc --uts --cgroup --fork --propagation private bash -c '
        set -eu
        # /proc is still the outer one: it names this process as the host sees it.
        read -r host_pid _ </proc/self/stat
        ip link set lo up
        # A fresh sysfs shows the devices of this network namespace; a second set of cgroup mounts would confuse crun.
        umount --recursive --lazy /sys
        mount -t sysfs sysfs /sys
        mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
        while IFS=: read -r _ controller _; do
            case $controller in
                "") continue ;;
                name=*) options=none,$controller ;;
                *) options=$controller ;;
            esac
            mkdir "/sys/fs/cgroup/${controller#name=}"
            mount -t cgroup -o "$options" cgroup "/sys/fs/cgroup/${controller#name=}"
        done </proc/self/cgroup
        mount -t proc proc /proc
        mount -t tmpfs -o mode=755 tmpfs /run
        mkdir /run/workspace
        mount --bind "$KATA_E2E_WORKSPACE" /run/workspace
        for dir in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$dir"; done
        # Engines write to fixed places below these, which the room has for itself. The layers lie on a tmpfs without a name.
        mount -t tmpfs tmpfs /mnt
        for dir in /etc /opt /var/lib; do
            mkdir -p "/mnt$dir/upper" "/mnt$dir/work"
            mount -t overlay -o "lowerdir=$dir,upperdir=/mnt$dir/upper,workdir=/mnt$dir/work" overlay "$dir"
        done
        umount -l /mnt
        # The room is the host of its pods, which reach each other through it.
        echo 1 >/proc/sys/net/ipv4/ip_forward
        # It may itself lie below one of them.
        mkdir -p "$KATA_E2E_WORKSPACE"
        mount --move /run/workspace "$KATA_E2E_WORKSPACE"
        rmdir /run/workspace
        cd "$KATA_E2E_WORKSPACE"
        if [ -n "${KATA_E2E_ASSETS:-}" ]; then
            mkdir -p /var/cache/kata-containers
            mount --bind "$KATA_E2E_ASSETS" /var/cache/kata-containers
        fi
        mkdir -p /run/lock /run/netns
        mount --bind /run/netns /run/netns
        mount --make-shared /run/netns
        echo "$host_pid"
        # bash as the first process reaps whatever is orphaned here.
        while read -r _; do :; done'
)
