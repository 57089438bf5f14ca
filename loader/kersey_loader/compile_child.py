"""The compiler, as a process of its own: it loads LLVM, pins the programs and is gone.

Run by the distribution's Python with nothing but the distribution's bcc; imports nothing of ours.
Reads a request as JSON from stdin. All that the compiler and the verifier say is on stderr; the
exit status says which of the two refused. Never attaches anything.
"""

import ctypes
import json
import os
import sys

EXIT_COMPILE = 10
EXIT_VERIFIER = 11
EXIT_PIN = 12
EXIT_NO_BCC = 13


def main() -> int:
    """Compile, load and pin what the request on stdin names."""
    request = json.load(sys.stdin)
    # libbcc reads it once, on its first compilation: no headers of the running kernel are needed.
    os.environ["BCC_KERNEL_SOURCE"] = request["headers"]
    try:
        from bcc import BPF  # noqa: PLC0415 - its absence is an answer, not a crash
    except (ImportError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_NO_BCC
    try:
        module = BPF(text=request["text"], cflags=request["cflags"])
    except Exception as error:  # noqa: BLE001 - bcc raises nothing more specific
        print(error, file=sys.stderr)
        return EXIT_COMPILE
    for name, path in request["pins"].items():
        try:
            program = module.load_func(name, BPF.SCHED_CLS)
        except Exception as error:  # noqa: BLE001 - bcc raises nothing more specific
            print(error, file=sys.stderr)
            return EXIT_VERIFIER
        if not _pin(program.fd, path):
            return EXIT_PIN
    return 0


def _pin(fd: int, path: str) -> bool:
    libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    if libbpf.bpf_obj_pin(fd, path.encode()) == 0:
        return True
    print(f"cannot pin {path}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
    return False


if __name__ == "__main__":
    sys.exit(main())
