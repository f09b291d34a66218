# SPDX-License-Identifier: GPL-2.0
"""Runs commands in another tree than the build root: QEMU and the device, where they need OpenGL.

Debian's trees are in the cache; scripts/tree.sh makes them.
"""

from . import environment

MOUNTS = (("rbind", "dev"), ("rbind", "proc"), ("rbind", "sys"),
          ("bind", "tmp"), ("bind", "project"), ("bind", "cache"))
# The renderer is Mesa's in software, and shows nothing.
VARIABLES = ["SDL_VIDEODRIVER=offscreen", "SDL_AUDIODRIVER=dummy", "XDG_RUNTIME_DIR=/tmp",
             "VK_DRIVER_FILES=/usr/share/vulkan/icd.d/lvp_icd.json"]


def in_mesa(command):
    """The command, to be run with the tree with Mesa as its root; it sees this run's folders."""
    folder = environment.tree_folder("mesa")
    mounts = "; ".join(f"busybox mount -o {how} /{d} {folder}/{d}" for how, d in MOUNTS)
    # Replaced and not left waiting, so that signals reach QEMU.
    return ["unshare", "--mount", "sh", "-ec", f'{mounts}; exec chroot {folder} "$@"', "in-tree",
            "/usr/bin/env", *VARIABLES, *command]
