#!/bin/bash
# Real container runtimes: runtimes.sh DIR TAG runs a containerd, a dockerd and a podman in a network namespace of
# their own, with everything they keep in DIR and every cgroup below /TAG; says "ready"; and removes all of it when its
# standard input ends, which it does however the test ends.
set -euo pipefail
dir=$1 tag=$2
if [[ ${3:-} != inside ]]; then exec unshare --net -- "$0" "$dir" "$tag" inside; fi
cd "$dir"
exec 3>&1 >"$dir/log" 2>&1

ctr() { command ctr --address "$dir/containerd.sock" "$@"; }
docker() { command docker --host "unix://$dir/docker.sock" "$@"; }
podman() { CONTAINERS_CONF=$dir/podman.toml CONTAINERS_STORAGE_CONF=$dir/storage.toml command podman "$@"; }

# Processes below our cgroups, and everything that was started with our directory in its arguments: but not this very
# grep, whose argument is not what it matches.
ours() {
  local arguments="${dir%?}[${dir: -1}]/"
  { grep -ls ":/$tag/" /proc/[0-9]*/cgroup; grep -ls -- "$arguments" /proc/[0-9]*/cmdline; } | cut -d/ -f3 | sort -u | grep -vx -e "$$" -e "$BASHPID" -e "$PPID" || true
}

clean() {
  set +e
  for _ in {1..100}; do
    pids=$(ours)
    [[ -n $pids ]] || break
    kill -KILL $pids 2>/dev/null
    sleep 0.05
  done
  # The deepest mounts and cgroups first.
  for mount in $(cut -d' ' -f5 /proc/self/mountinfo | grep "^$dir/" | sort -r); do umount -l "$mount"; done
  find /sys/fs/cgroup -depth -type d -path "*/$tag*" -exec rmdir {} + 2>/dev/null
  cd / && rm -rf "$dir"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM

ip link set lo up

cat >containerd.toml <<END
version = 2
root = "$dir/containerd"
state = "$dir/containerd-state"
[grpc]
address = "$dir/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "localhost/one:1"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
END
containerd --config "$dir/containerd.toml" &

dockerd --data-root "$dir/docker" --exec-root "$dir/docker-state" --pidfile "$dir/docker.pid" --storage-driver overlay2 \
  --host "unix://$dir/docker.sock" --bridge none --iptables=false --ip6tables=false --cgroup-parent "/$tag/docker" &

cat >podman.toml <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$dir/podman-state"
static_dir = "$dir/podman-static"
volume_path = "$dir/podman-volumes"
END
cat >storage.toml <<END
[storage]
driver = "overlay"
graphroot = "$dir/podman"
runroot = "$dir/podman-run"
END
podman system service --time 0 "unix://$dir/podman.sock" &

answers() {
  for _ in {1..300}; do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done
  echo "$* never succeeded"
  return 1
}
answers ctr version
for image in localhost-one-1 localhost-two-1; do
  ctr --namespace "$tag" image import "$image.tar"
  ctr --namespace k8s.io image import "$image.tar"
done
answers docker version
docker load --input localhost-one-1.tar
podman load --input localhost-one-1.tar
answers test -S podman.sock

echo ready >&3
# Nobody writes: this returns when the test is over.
read -r || true
