#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# count.sh: builds build/count.so, QEMU's plugin that counts instructions of a guest
# (bench/plugin/count.c), unless it is there.
. "$(dirname "$0")/lib.sh"

cd "$TOP"
if [ build/count.so -nt bench/plugin/count.c ] && [ build/count.so -nt bench/plugin/qemu.h ]; then
	exit 0
fi
# Replaced as a whole: a guest may be using it.
new=build/count.so.$$
scripts/in-root gcc -O2 -Wall -Wextra -Werror -shared -fPIC -fvisibility=hidden -o "$new" bench/plugin/count.c
mv "$new" build/count.so
