"""Masquerade and forward rules: what they must be, and the two engines that can hold them."""
