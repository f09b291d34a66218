# SPDX-License-Identifier: GPL-2.0
"""Checks of the source and the documentation for suite `lint`, started by scripts/lint.sh."""
