"""What can go wrong in the loader, by what the caller can do about it."""


class LoaderError(Exception):
    """Base of everything that the loader raises; the network works without it, only slower."""


class CompileError(LoaderError):
    """The programs did not compile: `log` is the compiler's whole output."""

    def __init__(self, log: str) -> None:
        super().__init__(f"the BPF programs do not compile:\n{log}")
        self.log = log


class VerifierError(LoaderError):
    """The kernel refused a program: `log` is the verifier's whole output."""

    def __init__(self, log: str) -> None:
        super().__init__(f"the kernel refuses a BPF program:\n{log}")
        self.log = log


class ToolchainError(LoaderError):
    """The compiler could not be run at all: bcc or its interpreter is missing or broken."""


class BpfError(LoaderError):
    """A bpf(2) call failed. `code` is the errno."""

    def __init__(self, call: str, code: int, reason: str) -> None:
        super().__init__(f"{call}: {reason}")
        self.code = code


class AttachError(LoaderError):
    """A program could not be attached to or detached from a device."""


class PeersFullError(LoaderError):
    """There are more peers than the maps were made for; the peer stays on the slow path."""
