# A layer above this machine's root, at $1/root, in a mount namespace that lives as long as somebody holds our input.
set -e
mount -t tmpfs layer "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
# Only what the packages themselves want to be started, and what a test enables.
rm -rf etc/systemd/system etc/egress var/lib/egress var/log/egress etc/sysctl.d etc/sysctl.conf
mkdir -p etc/systemd/system etc/sysctl.d dev proc sys run tmp
echo up
exec cat >/dev/null
