"""The etcd layer: the only place that knows HTTP/2, gRPC and protobuf. From the bottom up:

- `http2` and `grpc_protocol` turn calls into bytes and bytes into answers, without a socket.
- `dialing` connects, `diagnosis` says why it could not; `settings` reads where etcd is and who we
  are.
- `transport` (threads) and `aio_transport` (asyncio) carry calls to one endpoint.
- `rpc` has etcd's messages; `encode` turns the core's data into them and back.
- `connection` and `aio_connection` make calls: endpoints, login, and `outcomes`, which sorts what
  may go wrong.
- `streams` decides what the two streams send, and what their answers mean;
  `stream_thread` and `aio_streams` drive them.
"""
