# SPDX-License-Identifier: Apache-2.0
"""Trained weights as one ONNX file. The command is in command.py."""
