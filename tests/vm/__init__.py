"""Kersey on stock kernels: small virtual machines in plain QEMU, provisioned as any node is.

Where everything else in tests/ makes nodes of network namespaces on the kernel of this machine,
here each node is a machine with a Debian kernel, systemd and a disk of its own. QEMU emulates the
processor (TCG): it runs anywhere, and times say nothing.
"""
