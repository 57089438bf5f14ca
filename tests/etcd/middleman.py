"""A gRPC proxy in front of a real etcd that answers some calls itself. It passes no watches on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from etcd.etcd_server import EtcdServer


class Middleman(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Answer at `url` as the server does, except for methods (`Range`, `Txn`) in `answers`.

    Those get these bytes, or None: no answer at all, and what was asked is kept back.
    """

    def __init__(self, server: EtcdServer) -> None:
        self.answers: dict[str, bytes | None] = {}
        self.kept_back: list[Callable[[], object]] = []
        """Calls that pass on what was kept back."""
        self._channel = grpc.insecure_channel(server.url.removeprefix("http://"))
        self._grpc = grpc.server(ThreadPoolExecutor(4), handlers=[self])
        self.url = f"http://127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._grpc.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._grpc.stop(0).wait(10)
        self._channel.close()

    def service(self, handler_call_details: Any) -> Any:
        """Return what answers a call, as gRPC asks for it."""
        method: str = handler_call_details.method
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(method, request, context)
        )

    def _answer(self, method: str, request: bytes, context: Any) -> bytes:
        name = method.rpartition("/")[2]
        pass_on = self._channel.unary_unary(method)
        if name not in self.answers:
            answer: bytes = pass_on(request, timeout=5)
            return answer
        own = self.answers[name]
        if own is None:
            self.kept_back.append(lambda: pass_on(request, timeout=5))
            context.abort(grpc.StatusCode.UNAVAILABLE, "no answer")
        assert own is not None
        return own
