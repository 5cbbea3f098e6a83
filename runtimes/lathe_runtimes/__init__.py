"""Serves artifacts: model repository, Lathe runtime, Triton launcher."""
