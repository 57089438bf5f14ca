"""Kersey's control plane: leases in, kernel state out."""

__version__ = "0.1.0"
