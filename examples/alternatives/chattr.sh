#!/bin/sh
# What chattr +i does to a directory that should only not be removed. Run as root, in a directory on ext4, xfs or btrfs:
#     sudo sh examples/alternatives/chattr.sh
set -u
top=$(mktemp -d "${TMPDIR:-/var/tmp}/exclfs-chattr-XXXXXX")
# shellcheck disable=SC2317 # the trap calls it
clean_up() { chattr -R -i "$top"; rm -rf "$top"; }
trap clean_up EXIT
cd "$top" || exit 1

say() { printf '\n# %s\n' "$1"; }
run() { printf '$ %s\n' "$*"; "$@" 2>&1; printf '[exit %d]\n' $?; }

mkdir cache && echo data > cache/object && ln cache/object other-link

say 'A directory: it cannot be removed or renamed, and nothing can be created in it either.'
run chattr +i cache
run rmdir cache
run mv cache cache2
run touch cache/new
run rm -f cache/object
run chattr -i cache

say 'A file: not removed, by any link. It cannot be written, linked or chmod-ed either.'
run chattr +i cache/object
run rm -f other-link
run sh -c 'echo more >> cache/object'
run chmod 600 cache/object
run ln cache/object third-link

say 'Who did that, and why? The flag carries neither.'
run lsattr cache/object

say 'The process that set it has ended long ago. The flag stays until somebody with CAP_LINUX_IMMUTABLE clears it.'
run chattr -i cache/object
run rm -f cache/object other-link
