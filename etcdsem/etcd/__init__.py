"""The etcd layer: the only place that knows gRPC and protobuf.

`settings` reads where etcd is and who we are (and needs no gRPC), `rpc` has the messages,
`encode` turns the core's data into them and back, `outcomes` sorts what may go wrong,
`connection` makes calls, `watchbook` decides what a watch stream does, `watching` and
`keepalive` are the streams.
"""
