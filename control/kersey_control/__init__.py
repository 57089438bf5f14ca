"""Kersey's control plane: leases in, kernel state out."""

from importlib.metadata import version

__version__ = version("kersey")
