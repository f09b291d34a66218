#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Makes the build root, a Debian 13 tree in the cache, and prints its path.
exec "$(dirname "$0")/tree.sh" root
