"""The etcd layer: the only code that knows HTTP/2, gRPC and protobuf. From the bottom up:

- `http2` and `grpc_protocol` turn calls into bytes and bytes into answers, without a socket.
  Below `http2` are `http2_streams`, `http2_headers` and `http2_frames`.
- `dialing` connects, and `diagnosis` explains why that failed; `settings` reads the endpoints and
  credentials.
- `transport` (threads, with a `call_connection` for each call in progress) and `aio_transport`
  (asyncio) carry calls to one endpoint.
- `rpc` contains etcd's messages; `encode` converts between them and the core's data.
- `methods` lists etcd's methods. `calls` decides which calls to make at which endpoint, with
  `login` for the token and `outcomes` to classify failures. `connection` and `aio_connection`
  make the calls.
- `streams` decides what the two streams send, and what their answers mean; `stream_thread` and
  `aio_streams` drive them.
"""
