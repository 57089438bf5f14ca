"""What can go wrong with the testbed itself, as opposed to what runs in it."""


class ClusterError(Exception):
    """Report a step of the testbed that failed, with the output of the program that refused it."""
