"""What can go wrong with virtual machines."""


class VmError(Exception):
    """An image, a machine or a command in one did not come about; the message says which."""
