# SPDX-License-Identifier: GPL-2.0
"""What runs the tests and validates what they print, inside the build root.

`python3 scripts/virtgpu COMMAND` is the way in (see __main__.py). The shell scripts beside the
package are for the bare host: they make the build root, the kernels and the programs, and start a
command of this package when these are there. Only Python's standard library is used.
"""
