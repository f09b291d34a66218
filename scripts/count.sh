#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# count.sh: builds build/count.so, QEMU's plugin that counts instructions of a guest
# (bench/plugin/count.c), unless it is there.
. "$(dirname "$0")/lib.sh"

source=bench/plugin/count.c
[ ! "$BUILD/count.so" -nt "$TOP/$source" ] || exit 0
# Replaced as a whole: a guest may be using it.
new=build/count.so.$$
"$TOP/scripts/in-root" gcc -O2 -Wall -Wextra -Werror -shared -fPIC -fvisibility=hidden -o "$new" "$source"
mv "$TOP/$new" "$BUILD/count.so"
