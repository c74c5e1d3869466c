"""The etcd layer: the only code that knows HTTP/2, gRPC and protobuf. From the bottom up:

- `http2` and `grpc_protocol` turn calls into bytes and bytes into answers, without a socket.
  `http2` consists of `http2_frames`, `http2_headers`, `http2_streams` and `http2`.
- `dialing` connects, and `diagnosis` explains why that failed; `settings` reads the endpoints and
  credentials.
- `transport` (threads; each of its connections is a `call_connection`) and `aio_transport`
  (asyncio) carry calls to one endpoint.
- `rpc` contains etcd's messages; `encode` converts between them and the core's data.
- `methods` lists etcd's methods. `calls` decides which calls to make at which endpoint, with
  `login` for the token and `outcomes` to classify failures. `connection` and `aio_connection`
  make the calls.
- `streams` decides what the two streams send, and what their answers mean; `stream_thread` and
  `aio_streams` drive them.
"""
