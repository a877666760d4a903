# SPDX-License-Identifier: Apache-2.0
"""Scores of a model on labeled images. The command is in command.py."""
