"""The etcd layer: the only place that knows gRPC and protobuf.

`settings` reads where etcd is and who we are (and needs no gRPC), `rpc` has the messages,
`encode` turns the core's data into them and back, `outcomes` sorts what may go wrong,
`connection` makes calls, `watchbook` decides what a watch stream does, `watching` and
`keepalive` are the streams.
"""

from __future__ import annotations

import importlib

from etcdsem.errors import EtcdSemError


def _is_main_interpreter() -> bool:
    for name in ("_interpreters", "_xxsubinterpreters"):  # since Python 3.13, and before
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() == interpreters.get_main())
    return True


if not _is_main_interpreter():
    # Measured with grpcio 1.85.1 on Python 3.11: loaded in a sub-interpreter first, it hangs.
    raise EtcdSemError(
        "etcdsem cannot talk to etcd from a sub-interpreter, since gRPC works in a process's main "
        "interpreter only (under mod_wsgi: WSGIApplicationGroup %{GLOBAL})"
    )
