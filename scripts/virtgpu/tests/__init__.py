# SPDX-License-Identifier: GPL-2.0
"""Unit tests of the package: a module test_NAME for what `virtgpu test NAME` runs."""
