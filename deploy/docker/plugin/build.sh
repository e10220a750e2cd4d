#!/bin/sh
# Makes the directory that `docker plugin create` takes: config.json, and a root file system with the program and the libraries it needs.
#   deploy/docker/plugin/build.sh PROGRAM DIRECTORY && docker plugin create holdfast DIRECTORY
set -eu
program=$1
directory=$2
here=$(dirname "$0")
root=$directory/rootfs
mkdir -p "$root/usr/bin" "$root/run/docker/plugins" "$root/etc/holdfast" "$root/var/lib/holdfast" "$root/var/log" "$root/mnt/holdfast" \
    "$root/dev" "$root/proc" "$root/sys" "$root/tmp"
cp "$here/config.json" "$directory/config.json"
cp "$program" "$root/usr/bin/holdfast"
# Each at the place where the program looks for it, which is that of this machine.
ldd "$program" | sed -n 's|.*[[:space:]]\(/[^ ]*\) (0x.*|\1|p' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
